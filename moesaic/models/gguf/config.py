"""From a GGUF file's metadata to the config.json that an architecture's spec reads. Torch-free.

`architectures.json` says of each `general.architecture` whose spec that is, and what it does not share with the others:

    architecture, model_type  of the config
    where                     a tensor of some layer -> the entry that counts where there is one
    names                     metadata key -> config key, where it is not the usual one; null: says nothing more
    flags                     config key -> true where the file has this tensor, in some layer
    config, rope              values that the metadata leave out, because llama.cpp takes them for granted
    grouped                   values of files whose experts are in groups
    layers                    number of layers -> values of the one model that has so many
    scores                    how the router scores, where not by a softmax
    turned                    the converter turned queries and keys (`weights.codecs.gguf`); so `norms_plus_one`
    latent                    attention is DeepSeek's latent one
    partial_rotary            a part of a head may rotate
"""

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moesaic.core.errors import CheckpointError, UnsupportedError, nearest
from moesaic.core.keys import KeyReader
from moesaic.models.gguf.rotary import rope_parameters
from moesaic.weights.containers.gguf import GgufSource
from moesaic.weights.tensors import TORCH_NAMES

FILE = Path(__file__).parent / "architectures.json"
USUAL = {  # metadata key, behind the architecture's name -> config key
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
    "leading_dense_block_count": "first_k_dense_replace",
}
NONE_AT_ALL = ("expert_count", "expert_used_count", "attention.sliding_window")  # what a 0 means there
SAID_BY_TENSORS = ("vocab_size", "tensor_data_layout")
SCORES = {1: "softmax", 2: "sigmoid", 3: "softmax of the chosen"}
ENDS = ("eos", "eot", "eom")  # tokens that end a text, a turn, a message
PLAIN = ("F32", "F16", "BF16")


@cache
def _entries() -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
    return entries


def gguf_architectures() -> list[str]:
    """The values of `general.architecture` that are read."""
    return sorted(name for name in _entries() if " " not in name)


def gguf_config(source: GgufSource) -> dict[str, Any]:
    """The config of the model in a GGUF checkpoint.

    Raises:
        UnsupportedError: its architecture is not read, or the metadata say something that is not understood.
        ConfigError, CheckpointError: the metadata are incomplete, or wrong.
    """
    where = next(iter(source.tensors.values())).file if source.tensors else "the GGUF file"
    name = source.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError(f"{where}: general.architecture is missing from its metadata")
    if name not in gguf_architectures():
        close = nearest(name, gguf_architectures(), count=3) or gguf_architectures()
        raise UnsupportedError(f"{where}: the architecture {name!r} is not read from GGUF; nearest: {', '.join(close)}")
    entry = _entry(name, source)
    mine = {key.removeprefix(f"{name}."): value for key, value in source.metadata.items() if key.startswith(f"{name}.")}
    c = KeyReader(mine, where, f"{name}.")
    c.subject = "the model computes"
    config = {
        "architectures": [entry["architecture"]],
        "model_type": entry["model_type"],
        "dtype": _dtype(source),
        "vocab_size": _vocab_size(source, where),
        "tie_word_embeddings": "output.weight" not in source.tensors,
        **_tokens(source),
        **entry.get("config", {}),
        **{key: _has(source, tensor) for key, tensor in entry.get("flags", {}).items()},
    }
    names = USUAL | entry.get("names", {})
    for key, ours in names.items():
        if ours is None:
            c.ignore(key)
        elif key in c:
            value = _one(c, key)
            if value or key not in NONE_AT_ALL:
                config[ours] = value
    if config.get("n_group", 1) > 1:
        config |= entry.get("grouped", {})
    config["num_hidden_layers"] = c.require(int, "block_count") - c.read(int, "nextn_predict_layers", absent=0)
    config |= entry.get("layers", {}).get(str(config["num_hidden_layers"]), {})
    config |= _heads(c, entry, config)
    config["rope_parameters"] = rope_parameters(c, source, config, entry)
    _check_scores(c, entry)
    _windows(c, config)
    c.ignore(*SAID_BY_TENSORS)
    c.finish()
    return config | {"quantization_config": _how_stored(entry, config)}


def _entry(name: str, source: GgufSource) -> dict[str, Any]:
    entry = _entries()[name]
    other = next((other for tensor, other in entry.get("where", {}).items() if _has(source, tensor)), None)
    return entry if other is None else _entries()[other]


def _has(source: GgufSource, tensor: str) -> bool:
    """Whether there is a tensor of this name, alone or in some layer."""
    return any(name == tensor or f".{tensor}." in name or name.endswith(f".{tensor}") for name in source.tensors)


def _one(c: KeyReader, key: str) -> Any:
    """A value; one that is given for each layer must be the same in all."""
    value = c.value(key)
    if not isinstance(value, list):
        return value
    if not value or any(v != value[0] for v in value):
        raise UnsupportedError(f"{c.error(key, 'differs from layer to layer, which is not read')}")
    return value[0]


def _heads(c: KeyReader, entry: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and sizes of heads."""
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise c.error("attention.head_count", "must be a number of heads")
    if entry.get("latent"):
        return _latent_heads(c, heads)
    kv_heads = _one(c, "attention.head_count_kv") if "attention.head_count_kv" in c else heads
    size = c.read(int, "attention.key_length", absent=int(config.get("hidden_size", 0)) // heads)
    c.refuse_unless("attention.value_length", size)
    return {"num_key_value_heads": kv_heads, "head_dim": size}


def _latent_heads(c: KeyReader, heads: int) -> dict[str, Any]:
    """Of latent attention: files from 2025-04 on give lengths as the cache has them, and beside them the heads' own."""
    rotating = c.require(int, "rope.dimension_count")
    c.ignore("attention.head_count_kv", "attention.key_length", "attention.value_length")
    whole = c.require(int, "attention.key_length_mla" if "attention.key_length_mla" in c else "attention.key_length")
    value = "attention.value_length_mla" if "attention.value_length_mla" in c else "attention.value_length"
    return {
        "num_key_value_heads": heads,
        "qk_rope_head_dim": rotating,
        "qk_nope_head_dim": whole - rotating,
        "v_head_dim": c.require(int, value),
        "q_lora_rank": c.read(int | None, "attention.q_lora_rank", absent=None),
    }


def _check_scores(c: KeyReader, entry: Mapping[str, Any]) -> None:
    wanted = entry.get("scores", "softmax")
    given = c.read(int, "expert_gating_func", absent=0)
    if given and SCORES.get(given) != wanted:
        raise UnsupportedError(
            f"{c.path}: its router scores by {SCORES.get(given, f'function {given}')}, where only {wanted} is known of "
            f"{entry['architecture']}"
        )


def _windows(c: KeyReader, config: dict[str, Any]) -> None:
    """Which layers slide, where the file says it of each."""
    pattern = c.read(list | int | None, "attention.sliding_window_pattern", absent=None)
    layers = config["num_hidden_layers"]
    if isinstance(pattern, int) and not isinstance(pattern, bool):
        pattern = [bool((layer + 1) % pattern) for layer in range(layers)] if pattern > 0 else None
    if pattern is not None:
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern[:layers]]


def _how_stored(entry: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What the codec must undo."""
    stored: dict[str, Any] = {"quant_method": "gguf"}
    if entry.get("turned"):
        stored["turned"] = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    if entry.get("norms_plus_one"):
        stored["norms_plus_one"] = True
    return stored


def _dtype(source: GgufSource) -> str:
    """The plain type that most numbers are kept as; of quantised ones, bfloat16."""
    sizes: Counter[str] = Counter()
    for info in source.tensors.values():
        sizes[info.dtype if info.dtype in PLAIN else "BF16"] += info.nbytes
    return TORCH_NAMES[sizes.most_common(1)[0][0]] if sizes else "bfloat16"


def _vocab_size(source: GgufSource, where: str) -> int:
    table = source.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"{where}: the embedding token_embd.weight is missing")
    return table.shape[0]


def _tokens(source: GgufSource) -> dict[str, Any]:
    """Special tokens, as far as they are told."""
    given = {"pad_token_id": "padding", "bos_token_id": "bos"}
    ids = {key: source.metadata.get(f"tokenizer.ggml.{kind}_token_id") for key, kind in given.items()}
    tokens: dict[str, Any] = {key: value for key, value in ids.items() if isinstance(value, int)}
    ends = (source.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ENDS)
    return tokens | {"eos_token_id": list(dict.fromkeys(i for i in ends if isinstance(i, int)))}
