"""What keys of a config mean, by whatever words: `experts_num`, `n_experts` and `num_local_experts` are one field.

A key is read as its set of words, synonyms as one. Torch-free.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from moesaic.models.config_reader import METADATA

SYNONYMS = {
    "n": "num", "number": "num", "count": "num", "nb": "num", "no": "num",
    "d": "dim", "size": "dim", "width": "dim", "dimension": "dim", "channels": "dim",
    "head": "heads", "layer": "layers", "block": "layers", "blocks": "layers", "expert": "experts", "tok": "token",
    "tokens": "token", "eps": "epsilon", "emb": "embedding", "embd": "embedding", "embeddings": "embedding",
    "embed": "embedding", "ctx": "context", "len": "length", "sequence": "seq", "positions": "position",
    "pos": "position", "ff": "ffn", "feedforward": "ffn", "mlp": "ffn", "attn": "attention", "kv": "keyvalue",
    "vocabulary": "vocab", "rotary": "rope", "func": "function", "fn": "function", "act": "activation",
    "normalise": "renormalize", "normalize": "renormalize", "renormalise": "renormalize", "tied": "tie",
    "share": "shared", "topk": "top k", "gate": "router", "gating": "router", "routing": "router", "route": "router",
    "score": "scoring", "interleave": "interleaved", "selected": "active", "activated": "active", "chosen": "active",
    "groups": "group", "scaling": "scale", "factor": "scale", "layernorm": "norm", "rms": "norm", "rmsnorm": "norm",
    "ln": "norm", "pct": "fraction", "percent": "fraction", "routed": "router",
}  # fmt: skip

_FIELDS = """
hidden_size: hidden dim | dim model | embedding dim | num embedding | dim | hidden | model hidden dim
num_hidden_layers: num hidden layers | num layers | layers | depth | num decoder layers
num_attention_heads: num attention heads | num heads | heads | num query heads | num q heads | attention heads
num_key_value_heads: num key value heads | num keyvalue heads | keyvalue heads | attention keyvalue heads
head_dim: heads dim | attention heads dim | keyvalue dim | dim heads key
vocab_size: vocab dim | num vocab | vocab
max_position_embeddings: max position embedding | max seq length | num position | num context | context length
    | max context length | model max length | seq length | max position | max seq dim | context dim | context
rms_norm_eps: norm epsilon | layers norm epsilon | epsilon
rope_theta: rope theta | rope base | rope embedding base | theta | rope freq base | rope base freq
tie_word_embeddings: tie word embedding | tie embedding | tie weights | weight tying | tie
    | shared input output embedding | tie word embedding s
hidden_act: hidden activation | activation function | activation | hidden activation function | ffn activation
    | experts activation | ffn activation function | activation type | experts activation function
num_experts: num experts | num local experts | num router experts | moe num experts | experts | total num experts
    | moe experts | num total experts
top_k: num experts per token | top k | moe top k | moe k | top k experts | experts per token | experts top k
    | router top k | num active experts | active experts | k | moe router top k | experts active | num experts active
expert_size: moe intermediate dim | experts ffn hidden dim | experts dim | experts intermediate dim | experts ffn dim
    | moe ffn hidden dim | moe ffn dim | experts hidden dim | moe hidden dim | dim experts | moe dim
intermediate_size: intermediate dim | ffn dim | ffn hidden dim | ffn intermediate dim | inner dim | num inner
    | dense ffn dim | dense intermediate dim | dim ffn | hidden ffn dim
num_shared: num shared experts | moe num shared experts | shared experts | num shared
shared_size: shared experts intermediate dim | shared intermediate dim | shared experts dim | shared dim
    | moe shared experts intermediate dim | shared ffn dim | shared experts ffn dim
first_dense: first k dense replace | num dense layers | first dense layers | num first dense layers | dense layers
    | first k dense
scale: router scale | router scale scale | moe router scale | moe router scale scale
num_groups: num group | num experts group | router num group
top_groups: top k group | num limited group | router top k group | num top group
renormalize: norm top k prob | moe renormalize | renormalize | renormalize experts weights | renormalize top k
    | norm top k | router renormalize | renormalize router weights | norm top k probs | renormalize weights
    | moe renormalize experts weights
scoring: scoring function | router type | router function | experts selection function | router scoring function
    | scoring type | router activation | router scoring | moe router type | router method
use_qk_norm: use qk norm | qk norm
attention_bias: attention bias | qkv bias | use bias | bias | use qkv bias | attention qkv bias
mlp_bias: ffn bias | use ffn bias
sliding_window: sliding window | window dim | attention window | window | sliding window dim
use_window: use sliding window | use window
partial_rotary: partial rope scale | rope fraction | partial rope
rope_interleaved: rope interleaved | interleaved rope | rope style | rope kind | rope embedding interleaved
    | rope layout
clip_qkv: clip qkv | qkv clip
embedding_multiplier: embedding multiplier | embedding scale | scale embedding
residual_multiplier: residual multiplier | residual scale
logits_scaling: logits scale
attention_multiplier: attention multiplier | attention scale | attention scale scale
logits_softcap: final logit softcapping | logits softcap | logit softcap | logits soft cap
attention_softcap: attention logit softcapping | attention softcap | attention soft cap
swiglu_limit: swiglu limit
swiglu_alpha: swiglu alpha
jitter: router jitter noise | router jitter
norm_kind: norm type | norm kind | normalization
positions_kind: position embedding type | position encoding | position encoding type
head_bias: lm heads bias | logits bias | output bias
shared_gated: use shared experts router | shared experts router
"""
USELESS = {  # word of a key -> why what it says changes nothing here
    **dict.fromkeys(("dropout", "pdrop", "drop"), "of training"),
    **dict.fromkeys(("loss", "aux", "z", "balance", "balancing"), "a loss of training"),
    **dict.fromkeys(("init", "initializer", "initialization", "std"), "how weights were first drawn"),
    **dict.fromkeys(("training", "train", "checkpointing", "lr", "optimizer", "capacity"), "of training"),
    **dict.fromkeys(("parallel", "ep", "tp", "pp", "fused", "flash", "kernel", "implementation"), "how it was run"),
    **dict.fromkeys(("architecture", "name", "version", "author", "license", "description", "arch"), "names the model"),
    **dict.fromkeys(("dtype", "precision"), "what weights are kept in"),
}


@cache
def field_of(key: str) -> str | None:
    """The field that a config's key means; None for one that no list here has."""
    return BY_WORDS.get(words_of(key))


def stated(values: Mapping[str, Any], field: str) -> Iterator[tuple[str, Any]]:
    """The keys that mean a field, and what they say; those that are also said of other things come last."""
    keys = [key for key in values if field_of(key) == field]
    return ((key, values[key]) for key in sorted(keys, key=lambda key: key in METADATA))


def numbers(config: Mapping[str, Any] | None, field: str) -> Iterator[int]:
    """The whole numbers that a config states for a field, by whatever keys: its own first, then those of objects
    within."""
    parts: list[Mapping[str, Any]] = [config or {}]
    while parts:
        part = parts.pop(0)
        found = (value for _, value in stated(part, field))
        yield from (value for value in found if isinstance(value, int) and not isinstance(value, bool))
        parts += [value for value in part.values() if isinstance(value, Mapping)]


def number(config: Mapping[str, Any] | None, field: str) -> int | None:
    """The first of `numbers`; None for none."""
    return next(numbers(config, field), None)


def useless(key: str) -> str | None:
    """Why a key changes nothing of what is computed; None where it may."""
    words = split_words(key)
    if words[-1:] in (["id"], ["ids"]) and {"token", "bos", "eos", "pad", "unk", "eod", "sep"} & set(words):
        return "of the tokenizer"
    return next((USELESS[word] for word in words if word in USELESS), None)


def split_words(part: str) -> list[str]:
    """Lower-case words of one part of a name: `qkvProj_0` -> qkv, proj, 0; numbers stay with letters before them."""
    pieces = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])[0-9]*|[0-9]+", part)
    return [piece.lower() for piece in pieces]


def words_of(key: str) -> frozenset[str]:
    """A key as a set of words, synonyms as one."""
    return _set(" ".join(split_words(key)))


def _set(text: str) -> frozenset[str]:
    return frozenset(" ".join(SYNONYMS.get(word, word) for word in text.split()).split())


def _table() -> dict[frozenset[str], str]:
    """Set of words -> field; a field's own name, and the first that claims a set, win."""
    table: dict[frozenset[str], str] = {}
    for line in _FIELDS.replace("\n    |", " |").strip().splitlines():
        field, _, spellings = line.partition(":")
        for spelling in spellings.split("|"):
            table.setdefault(_set(spelling), field)
    return table


BY_WORDS = _table()
