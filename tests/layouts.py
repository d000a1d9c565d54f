"""Tiny models written out as other programs keep them, from the definition of each layout: what they write, not what we
read, says where a weight goes."""

import argparse
import collections
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
EXPERT = re.compile(r"model\.layers\.(\d+)\.(.*\.experts)\.(\d+)\.(.*)")


def write_config(model: Any, folder: Path) -> State:
    """The model's config.json alone; its weights by the names of the hub, each expert by itself."""
    model.save_pretrained(folder)
    state: State = {}
    for file in folder.glob("*.safetensors"):
        state |= load_file(file)
        file.unlink()
    for name in [n for n in state if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        fused, prefix = state.pop(name), name.rsplit(".", 1)[0]
        for e, expert in enumerate(fused):
            if name.endswith("down_proj"):
                state[f"{prefix}.{e}.down_proj.weight"] = expert.clone()
            else:
                gate, up = expert.chunk(2)
                state[f"{prefix}.{e}.gate_proj.weight"], state[f"{prefix}.{e}.up_proj.weight"] = (
                    gate.clone(),
                    up.clone(),
                )
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write_directories(state: State, folder: Path, leaf: str, rest: str) -> None:
    """Each expert in a folder.

    Args:
        leaf: "tensor": a bare tensor a file; "dict": a state dict an expert; "safetensors": the same.
        rest: "safetensors", "bin" or "loose" files.
    """
    others, experts = {}, collections.defaultdict(dict)
    for name, tensor in state.items():
        found = EXPERT.fullmatch(name)
        if found is None:
            others[name] = tensor
            continue
        experts[f"{folder}/model/layers/{found[1]}/{found[2].replace('.', '/')}/{found[3]}"][found[4]] = tensor
    for where, tensors in experts.items():
        Path(where).mkdir(parents=True)
        if leaf == "tensor":
            for name, tensor in tensors.items():
                torch.save(tensor, f"{where}/{name.removesuffix('.weight')}.bin")
        elif leaf == "dict":
            torch.save(tensors, f"{where}/pytorch_model.pt")
        else:
            save_file(tensors, f"{where}/model.safetensors")
    if rest == "safetensors":
        save_file(others, folder / "model.safetensors")
    elif rest == "bin":
        torch.save(others, folder / "pytorch_model.bin")
    else:
        for name, tensor in others.items():
            torch.save(tensor, folder / f"{name}.bin")


def write_hdf5(state: State, folder: Path, files: int = 1, **how: Any) -> None:
    """A dataset a tensor, in groups; bfloat16 as unsigned integers with an attribute."""
    import h5py

    for number in range(files):
        with h5py.File(folder / f"weights_{number}.h5", "w") as file:
            for name, tensor in list(state.items())[number::files]:
                bits = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
                dataset = file.create_dataset(name.replace(".", "/"), data=bits.numpy(), **how)
                if tensor.dtype == torch.bfloat16:
                    dataset.attrs["dtype"] = "bfloat16"


def write_deepspeed(state: State, folder: Path, tag: str | None = "global_step10") -> None:
    """As DeepSpeedEngine._save_moe_checkpoint does: a file an expert, the layers with experts counted by themselves."""
    where = folder / (tag or "")
    where.mkdir(exist_ok=True)
    if tag:
        (folder / "latest").write_text(tag)
    rest, experts = {}, collections.defaultdict(dict)
    layers = sorted({int(found[1]) for name in state if (found := EXPERT.fullmatch(name))})
    for name, tensor in state.items():
        if found := EXPERT.fullmatch(name):
            block = found[2].removesuffix(".experts")
            own = f"model.layers.{found[1]}.{block}.deepspeed_moe.experts.deepspeed_experts.{found[3]}.{found[4]}"
            experts[layers.index(int(found[1])), int(found[3])][own] = tensor.clone()
        elif re.search(r"\.(mlp|block_sparse_moe)\.gate\.weight", name):
            rest[name.replace(".gate.weight", ".deepspeed_moe.gate.wg.weight")] = tensor
        else:
            rest[name] = tensor
    for (layer, expert), tensors in experts.items():
        torch.save(tensors, where / f"layer_{layer}_expert_{expert}_mp_rank_00_model_states.pt")
    training = {"args": argparse.Namespace(lr=1.0), "optimizer": None, "global_steps": 10, "skipped_steps": 0}
    torch.save({"module": collections.OrderedDict(rest), **training}, where / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {"state": torch.ones(3)}}, where / "expp_rank_0_mp_rank_00_optim_states.pt")


def write_megatron(
    state: State,
    config: Any,
    folder: Path,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    grouped: bool = True,
    engine: bool = True,
    step: int | None = None,
    pad: int = 0,
) -> None:
    """As megatron/training/checkpointing.py names its files and GPTModel its parameters.

    Args:
        tp, pp, ep: ranks that share tensors, layers and experts.
        grouped: experts of TEGroupedMLP, else of SequentialMLP.
        engine: Transformer Engine's layers, whose projections hold the norm before them.
        pad: rows that the vocabulary is padded by.
    """
    where = folder if step is None else folder / f"iter_{step:07d}"
    if step is not None:
        (folder / "latest_checkpointed_iteration.txt").write_text(f"{step}\n")
    layers = config.num_hidden_layers // pp
    assert layers * pp == config.num_hidden_layers
    for t in range(tp):
        for p in range(pp):
            for e in range(ep):
                name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pp > 1 else "") + (f"_{e:03d}" if ep > 1 else "")
                model: dict[str, Any] = {}
                if p == 0:
                    table = state["model.embed_tokens.weight"]
                    table = torch.cat([table, torch.full((pad, table.shape[1]), 7.0)])
                    model["embedding.word_embeddings.weight"] = table.chunk(tp)[t].clone()
                for layer in range(layers):
                    theirs = f"model.layers.{p * layers + layer}"
                    _megatron_layer(
                        model, state, config, theirs, f"decoder.layers.{layer}", (t, tp, e, ep), grouped, engine
                    )
                if p == pp - 1:
                    model["decoder.final_layernorm.weight"] = state["model.norm.weight"]
                    if not config.tie_word_embeddings:
                        head = state["lm_head.weight"]
                        head = torch.cat([head, torch.full((pad, head.shape[1]), 7.0)])
                        model["output_layer.weight"] = head.chunk(tp)[t].clone()
                    model["decoder.final_layernorm._extra_state"] = None
                (where / name).mkdir(parents=True)
                training = {"args": argparse.Namespace(tensor_model_parallel_size=tp), "iteration": step or 0}
                training |= {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "rng_state": [torch.ones(2)]}
                torch.save({"model": model, **training}, where / name / "model_optim_rng.pt")


def _megatron_layer(
    model: dict[str, Any], state: State, config: Any, theirs: str, ours: str, rank: tuple[int, ...], grouped: bool,
    engine: bool,
) -> None:  # fmt: skip
    t, tp, e, ep = rank
    attention = f"{ours}.self_attention"
    groups, heads = config.num_key_value_heads, config.num_attention_heads
    for kind in ("weight", "bias"):
        if f"{theirs}.self_attn.q_proj.{kind}" not in state:
            continue
        q, k, v = (state[f"{theirs}.self_attn.{n}_proj.{kind}"] for n in "qkv")
        size = q.shape[0] // heads
        parts = []
        for g in range(groups):
            share = heads // groups * size
            parts += [q[g * share : (g + 1) * share], k[g * size : (g + 1) * size], v[g * size : (g + 1) * size]]
        model[f"{attention}.linear_qkv.{kind}"] = torch.cat(parts).chunk(tp)[t].clone()
    model[f"{attention}.linear_qkv._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    model[f"{attention}.linear_proj.weight"] = state[f"{theirs}.self_attn.o_proj.weight"].chunk(tp, 1)[t].clone()
    for n in "qk":
        if f"{theirs}.self_attn.{n}_norm.weight" in state:
            model[f"{attention}.{n}_layernorm.weight"] = state[f"{theirs}.self_attn.{n}_norm.weight"]
    norm = state[f"{theirs}.input_layernorm.weight"]
    model[f"{attention}.linear_qkv.layer_norm_weight" if engine else f"{ours}.input_layernorm.weight"] = norm
    norm = state[f"{theirs}.post_attention_layernorm.weight"]
    block = "block_sparse_moe" if any("block_sparse_moe" in name for name in state) else "mlp"
    names = (
        ("w1", "w3", "w2")
        if f"{theirs}.{block}.experts.0.w1.weight" in state
        else ("gate_proj", "up_proj", "down_proj")
    )

    def feed_forward(source: str, one: str, two: str, names: tuple[str, ...] = names) -> None:
        gate, up, down = (state[f"{source}.{name}.weight"] for name in names)
        model[one] = torch.cat([gate.chunk(tp)[t], up.chunk(tp)[t]])
        model[two] = down.chunk(tp, 1)[t].clone()

    mlp = f"{ours}.mlp"
    if f"{theirs}.{block}.gate.weight" not in state:
        feed_forward(f"{theirs}.mlp", f"{mlp}.linear_fc1.weight", f"{mlp}.linear_fc2.weight")
        model[f"{mlp}.linear_fc1.layer_norm_weight" if engine else f"{ours}.pre_mlp_layernorm.weight"] = norm
        return
    model[f"{ours}.pre_mlp_layernorm.weight"] = norm
    model[f"{mlp}.router.weight"] = state[f"{theirs}.{block}.gate.weight"]
    if f"{theirs}.mlp.gate.e_score_correction_bias" in state:
        model[f"{mlp}.router.expert_bias"] = state[f"{theirs}.mlp.gate.e_score_correction_bias"]
    count = sum(bool(re.fullmatch(rf"{theirs}\.{block}\.experts\.\d+\.{names[2]}\.weight", name)) for name in state)
    for local in range(count // ep):
        whole = f"{theirs}.{block}.experts.{e * (count // ep) + local}"
        if grouped:
            one, two = (f"{mlp}.experts.linear_fc{n}.weight{local}" for n in (1, 2))
        else:
            one, two = (f"{mlp}.experts.local_experts.{local}.linear_fc{n}.weight" for n in (1, 2))
        feed_forward(whole, one, two)
    for shared in ("shared_expert", "shared_experts"):
        if f"{theirs}.mlp.{shared}.up_proj.weight" in state:
            own = f"{mlp}.shared_experts"
            feed_forward(f"{theirs}.mlp.{shared}", f"{own}.linear_fc1.weight", f"{own}.linear_fc2.weight")
    if f"{theirs}.mlp.shared_expert_gate.weight" in state:
        model[f"{mlp}.shared_experts.gate_weight"] = state[f"{theirs}.mlp.shared_expert_gate.weight"]
