"""Tiny GGUF files as llama.cpp's converter writes them: names come from the gguf package's own table, what it does to
tensors and what it says in the metadata is written down here once more, by its conventions and not by our tables."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

Quantize = Callable[[str, np.ndarray], tuple[np.ndarray, Type | None]]

# family -> what llama.cpp calls it, and options of the tiny model that a GGUF file can tell
ARCHITECTURES: dict[str, str] = {
    "llama": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe", "deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "granitemoe": "granitemoe",
    "gpt_oss": "gpt-oss", "glm4_moe": "glm4moe", "ernie4_5_moe": "ernie4_5-moe", "dots1": "dots1",
    "hunyuan_v1_moe": "hunyuan-moe", "phimoe": "phimoe", "gemma2": "gemma2", "minimax_m2": "minimax-m2",
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.9, "mscale_all_dim": 0.9,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"rope_parameters": YARN},
    "dots1": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 256, "tie": True},
    "phimoe": {"router_jitter_noise": 0.01},
}
TURNED = ("llama", "granitemoe")
SCORES = {"glm4moe": 2}  # the converter names the router's scores of this one always


def write_gguf(folder: str | Path, out: str | Path, quantize: Quantize | None = None, **how: Any) -> Path:
    """Write the checkpoint in `folder` as a GGUF file.

    Args:
        quantize: name and floats -> what is stored, and its type; None for floats as they are.
        how: `old_experts`, one tensor an expert; `fused`, gate and up in one; `old_latent`, keys and values of latent
            attention in one; `split`, so many tensors a file; `tokenizer`, a function of the writer.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, architecture, split_max_tensors=how.get("split", 0))
    _describe(writer, architecture, config, how)
    if "tokenizer" in how:
        how["tokenizer"](writer)
    for name, tensor in _tensors(Path(folder), architecture, config, how):
        floats = np.ascontiguousarray(tensor.float().numpy())
        data, kind = quantize(name, floats) if quantize is not None else (floats, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(out)


def describe_tokenizer(folder: str | Path) -> Callable[[gguf.GGUFWriter], None]:
    """A function that adds the tokenizer in `folder`, of bytes, to a file."""
    data = json.loads((Path(folder) / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in data["added_tokens"]}
    tokens = {**{i: token for token, i in data["model"]["vocab"].items()}, **special}

    def describe(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")  # digits one by one, then as GPT-2 splits
        writer.add_token_list([tokens[i] for i in range(len(tokens))])
        writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
        writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
        writer.add_chat_template((Path(folder) / "chat_template.jinja").read_text())

    return describe


def blocks_of(kind: Type) -> Quantize:
    """Matrices whose rows fit into blocks of `kind`, made with random bits under moderate scales; all else as it is."""

    def quantize(name: str, floats: np.ndarray) -> tuple[np.ndarray, Type | None]:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if floats.ndim < 2 or floats.shape[-1] % block or "ffn_gate_inp" in name:
            return floats, None
        try:
            return gguf.quants.quantize(floats, kind), kind
        except NotImplementedError:  # the package only decodes these
            return _random_blocks(name, floats, kind, size), kind

    return quantize


def _random_blocks(name: str, floats: np.ndarray, kind: Type, size: int) -> np.ndarray:
    generator = np.random.default_rng(sum(name.encode()))
    block = gguf.GGML_QUANT_SIZES[kind][0]
    rows = generator.integers(0, 256, (*floats.shape[:-1], floats.shape[-1] // block, size), np.uint8)
    for at, scale in HALVES[kind].items():
        rows[..., at : at + 2] = np.full((*rows.shape[:-1], 1), scale, np.float16).view(np.uint8)
    return rows.reshape(*floats.shape[:-1], -1)


# Where fp16 numbers lie in the blocks of types that are only decoded, and values that make weights of about 0.1.
HALVES = {
    Type.Q4_K: {0: 0.0007, 2: 0.0035},
    Type.Q5_K: {0: 0.0004, 2: 0.0035},
    Type.Q6_K: {208: 0.00007},
    Type.Q2_K: {80: 0.008, 82: 0.008},
    Type.Q3_K: {108: 0.001},
    Type.IQ4_NL: {0: 0.001},
    Type.IQ4_XS: {0: 0.00005},
}


def _describe(w: gguf.GGUFWriter, architecture: str, c: dict[str, Any], how: dict[str, Any]) -> None:
    """The metadata, as far as the model's are told."""
    rope = c.get("rope_parameters") or {}
    heads = c["num_attention_heads"]
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(c.get("num_key_value_heads") or heads)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_file_type(0)
    if architecture != "gemma2":
        w.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if architecture == "deepseek2":
            w.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    for names, add in (
        (("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), w.add_expert_count),
        (("num_experts_per_tok", "moe_topk", "moe_k"), w.add_expert_used_count),
        (("moe_intermediate_size",), w.add_expert_feed_forward_length),
        (("shared_expert_intermediate_size",), w.add_expert_shared_feed_forward_length),
        (("n_shared_experts", "moe_num_shared_experts"), w.add_expert_shared_count),
        (("n_group",), w.add_expert_group_count),
        (("topk_group",), w.add_expert_group_used_count),
        (("first_k_dense_replace", "moe_layer_start_index"), w.add_leading_dense_block_count),
        (("moe_layer_interval",), w.add_interleave_moe_layer_step),
        (("routed_scaling_factor",), w.add_expert_weights_scale),
        (("attention_multiplier",), w.add_attention_scale),
        (("embedding_multiplier",), w.add_embedding_scale),
        (("residual_multiplier",), w.add_residual_scale),
        (("logits_scaling",), w.add_logit_scale),
        (("attn_logit_softcapping",), w.add_attn_logit_softcapping),
        (("final_logit_softcapping",), w.add_final_logit_softcapping),
        (("q_lora_rank",), w.add_q_lora_rank),
        (("kv_lora_rank",), w.add_kv_lora_rank),
    ):
        found = next((c[name] for name in names if c.get(name) is not None), None)
        if found is not None:
            add(found)
    if architecture in ("deepseek2", "dots1", "glm4moe") and c.get("norm_topk_prob"):
        w.add_expert_weights_norm(True)
    if architecture in SCORES:
        w.add_expert_gating_func(gguf.ExpertGatingFuncType(SCORES[architecture]))
    if architecture in ("gpt-oss", "gemma2"):
        w.add_sliding_window(c["sliding_window"])
    if architecture == "phimoe":
        w.add_sliding_window(0)
    if architecture == "deepseek2":
        _describe_latent(w, c, how.get("old_latent", False))
        return
    size = c.get("head_dim") or c["hidden_size"] // heads
    w.add_key_length(size)
    w.add_value_length(size)
    if architecture in ("llama", "granitemoe", "glm4moe", "minimax-m2", "phimoe"):
        w.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1)))


def _describe_latent(w: gguf.GGUFWriter, c: dict[str, Any], old: bool) -> None:
    rotating, key, value = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    w.add_rope_dimension_count(rotating)
    if old:
        w.add_key_length(key + rotating)
        w.add_value_length(value)
        return
    w.add_key_length(c["kv_lora_rank"] + rotating)
    w.add_value_length(c["kv_lora_rank"])
    w.add_key_length_mla(key + rotating)
    w.add_value_length_mla(value)


def _tensors(
    folder: Path, architecture: str, c: dict[str, Any], how: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by their GGUF names."""
    state = load_file(folder / "model.safetensors")
    known = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(known, c["num_hidden_layers"])
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in state.items():
        expert = re.fullmatch(r"model\.layers\.(\d+)\..*experts\.(\d+)\.(\w+)\.weight", name)
        if expert:
            part = {"w1": "gate", "w2": "down", "w3": "up"}.get(expert[3], expert[3].removesuffix("_proj"))
            stacks.setdefault(f"blk.{expert[1]}.ffn_{part}_exps", {})[int(expert[2])] = tensor
            continue
        fused = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(experts\.\w+|(in|out)put_linear\.weight)", name)
        if fused:
            yield from _split_fused(name, f"blk.{fused[1]}.ffn", tensor)
            continue
        name = name.replace("correction_bias", "correction.bias").replace("self_attn.sinks", "self_attn.sinks.weight")
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped is not None, name
        yield from _undone(mapped, tensor, architecture, c, how)
    for name, parts in stacks.items():
        if how.get("old_experts"):
            for number, tensor in parts.items():
                yield f"{name.removesuffix('_exps')}.{number}.weight", tensor
        elif not (how.get("fused") and "down" not in name):
            yield f"{name}.weight", torch.stack([parts[i] for i in range(len(parts))])
        elif "gate" in name:
            both = [torch.cat((parts[i], stacks[name.replace("gate", "up")][i])) for i in range(len(parts))]
            yield f"{name.replace('gate', 'gate_up')}.weight", torch.stack(both)


def _split_fused(name: str, block: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """gate and up one after the other; those of gpt-oss take turns, and are stored transposed."""
    kind = "bias" if name.endswith("bias") else "weight"
    taking_turns = "gate_up_proj" in name
    if kind == "weight" and not name.endswith("_linear.weight"):
        tensor = tensor.transpose(1, 2)
    if "down" in name or "output" in name:
        yield f"{block}_down_exps.{kind}", tensor
        return
    half = tensor.shape[1] // 2
    yield f"{block}_gate_exps.{kind}", tensor[:, ::2] if taking_turns else tensor[:, :half]
    yield f"{block}_up_exps.{kind}", tensor[:, 1::2] if taking_turns else tensor[:, half:]


def _undone(
    name: str, tensor: torch.Tensor, architecture: str, c: dict[str, Any], how: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    """What the converter does to single tensors."""
    heads, kv_heads = c["num_attention_heads"], c.get("num_key_value_heads")
    if architecture in TURNED and (".attn_q." in name or ".attn_k." in name):
        count = heads if ".attn_q." in name else kv_heads
        halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
        tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
    if architecture == "gemma2" and name.endswith("norm.weight"):
        tensor = tensor + 1
    if name.endswith("attn_kv_b.weight") and not how.get("old_latent"):
        split = tensor.view(heads, -1, tensor.shape[-1]).split([c["qk_nope_head_dim"], c["v_head_dim"]], dim=1)
        yield name.replace("kv_b", "k_b"), split[0].transpose(1, 2)
        yield name.replace("kv_b", "v_b"), split[1]
        return
    yield name, tensor
