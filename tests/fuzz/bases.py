"""The good checkpoints that are mutated: one tiny model, kept as everything that is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.conftest import EMBEDDED
from tests.gguf_files import write_gguf
from tests.layouts import write_directories, write_hdf5
from tests.niche import make_niche

LAYERS, EXPERTS, HIDDEN, INNER, VOCABULARY = 2, 4, 32, 16, 1536
RECORDED = "reference.recorded"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "attention_bias": False,
    "decoder_sparse_step": 1, "dtype": "float32", "eos_token_id": 1, "head_dim": 16, "hidden_act": "silu",
    "hidden_size": HIDDEN, "intermediate_size": 32, "max_position_embeddings": 256, "mlp_only_layers": [],
    "moe_intermediate_size": INNER, "norm_topk_prob": True, "num_attention_heads": 2, "num_experts": EXPERTS,
    "num_experts_per_tok": 2, "num_hidden_layers": LAYERS, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "sliding_window": None,
    "tie_word_embeddings": False, "use_sliding_window": False, "vocab_size": VOCABULARY,
}  # fmt: skip


def make_bases(folder: Path) -> None:
    """A folder for each way of keeping the model, below `folder`."""
    state = _state()
    names = sorted(state)
    for kind in ("safetensors", "sharded", "bin", "old_bin", "hdf5", "directories", "gguf"):
        where = folder / kind
        where.mkdir(parents=True)
        (where / "config.json").write_text(json.dumps(CONFIG))
        for file in TOKENIZER_FILES:
            shutil.copy(EMBEDDED / file, where)
    save_file(state, folder / "safetensors" / "model.safetensors", metadata={"format": "pt"})
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, folder / "sharded" / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(state, folder / "bin" / "pytorch_model.bin")
    torch.save(state, folder / "old_bin" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    write_hdf5(state, folder / "hdf5")
    write_directories(state, folder / "directories", "dict", "bin")
    write_gguf(folder / "safetensors", folder / "gguf" / "model.gguf", tokenizer=_tokenizer)
    for file in ("config.json", *TOKENIZER_FILES):
        (folder / "gguf" / file).unlink()


def make_tool_bases(folder: Path) -> None:
    """The same, a checkpoint of which no architecture is known, and a recorded reference by itself."""
    make_bases(folder)
    make_niche("feed-forward", folder / "niche")
    (folder / "niche.reference.safetensors").unlink()
    (folder / "recorded").mkdir()
    generator = torch.Generator().manual_seed(1)
    recorded = {
        "input_ids.0": torch.arange(5), "logits.0": torch.randn(5, VOCABULARY, generator=generator),
        "input_ids.1": torch.arange(3), "logits.1": torch.randn(3, VOCABULARY, generator=generator),
        "hidden.1": torch.randn(LAYERS + 1, 3, HIDDEN, generator=generator),
        "experts.1": torch.zeros(LAYERS, 3, 2, dtype=torch.int64),
    }  # fmt: skip
    about = {"format": "moesaic recorded reference 1", "recorded_from": "a test", "starts": "[3, 3]"}
    save_file(recorded, folder / "recorded" / RECORDED, metadata=about)


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    state = {"model.embed_tokens.weight": draw(VOCABULARY, HIDDEN), "lm_head.weight": draw(VOCABULARY, HIDDEN)}
    state["model.norm.weight"] = draw(HIDDEN)
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        state |= {f"{at}.{norm}_layernorm.weight": draw(HIDDEN) for norm in ("input", "post_attention")}
        state |= {f"{at}.self_attn.{n}_norm.weight": draw(16) for n in "qk"}
        sizes = {"q": (32, HIDDEN), "k": (16, HIDDEN), "v": (16, HIDDEN), "o": (HIDDEN, 32)}
        state |= {f"{at}.self_attn.{n}_proj.weight": draw(*size) for n, size in sizes.items()}
        state[f"{at}.mlp.gate.weight"] = draw(EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for part, size in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
                state[f"{at}.mlp.experts.{expert}.{part}_proj.weight"] = draw(*size)
    return state


def _tokenizer(writer: Any) -> None:
    """The embedded model's, as a GGUF file says it."""
    model = json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens += [f"<unused{i}>" for i in range(VOCABULARY - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    writer.add_eos_token_id(1)
    writer.add_chat_template((EMBEDDED / "chat_template.jinja").read_text())
