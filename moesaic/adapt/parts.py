"""What the parameters of a model are called in words, and which part of it each belongs to. Torch-free."""

import re

from moesaic.weights.rules import numberless

PARTS = ("embedding", "attention", "router", "experts", "shared experts", "dense", "norms", "head", "other")
_GUESSES = (  # words of tensors' names, first match wins, where nobody knows more
    ("embedding", r"embed|wte|wpe|tok_emb|word_emb"),
    ("head", r"lm_head|output_layer|(^|\.)output\.|(^|\.)head\."),
    ("shared experts", r"shared"),
    ("router", r"router|gating|gate_inp|\.gate\.(weight|bias|wg)|gate$|correction|exp_probs"),
    ("experts", r"expert|_exps|moe\.|block_sparse"),
    ("norms", r"norm|(^|[._])ln([._]|$|\d)"),
    ("attention", r"attn|attention|mixer|mamba|conv|[._]w?[qkvo](_proj)?([._]|$)|qkv|rotary|sinks"),
    ("dense", r"mlp|ffn|feed_forward|fc\d|w[123]"),
)
_WORDS = {
    "embed.weight": "token embeddings",
    "positions.weight": "position embeddings",
    "norm.weight": "last norm",
    "lm_head.weight": "output projection",
    "layers.#.attention_norm.weight": "norm before attention",
    "layers.#.attention_post_norm.weight": "norm after attention",
    "layers.#.ffn_norm.weight": "norm before the feed-forward",
    "layers.#.ffn_post_norm.weight": "norm after the feed-forward",
    "layers.#.mlp.router.weight": "router",
    "layers.#.mlp.router.correction": "router's correction of the choice",
    "layers.#.mlp.shared_gate.weight": "gate of the shared expert's output",
    "layers.#.scalar": "scale of the layer",
}
_PIECES = {
    "q": "queries", "k": "keys", "v": "values", "o": "output", "gate": "gate", "up": "up", "down": "down",
    "q_norm": "norm of queries", "k_norm": "norm of keys", "kv_a": "latent of keys and values",
    "kv_a_norm": "norm of that latent", "kv_b.#": "keys and values from the latent", "q_a": "latent of queries",
    "q_a_norm": "norm of the queries' latent", "q_b": "queries from their latent", "sinks": "sinks",
    "conv": "convolution", "rate": "rate", "norm": "norm",
}  # fmt: skip


def part_of(name: str) -> str:
    """The part of a model that a canonical parameter belongs to, one of PARTS."""
    words = name.split(".")
    if words[0] in ("embed", "positions"):
        return "embedding"
    if words[0] == "lm_head":
        return "head"
    if "experts" in words:
        return "experts"
    if "router" in words:
        return "router"
    if "shared" in words or "shared_gate" in words:
        return "shared experts"
    if "attention" in words:
        return "attention"
    if "mlp" in words or "shortcut" in words:
        return "dense"
    return "norms"


def guessed_part(name: str) -> str:
    """The part that a tensor of a checkpoint most likely belongs to, by the words in its name."""
    return next((part for part, words in _GUESSES if re.search(words, name.lower())), "other")


def in_words(name: str) -> str:
    """What a canonical parameter is: `gate of each expert`, `attention: queries`."""
    pattern = numberless(name)
    if pattern in _WORDS:
        return _WORDS[pattern]
    stem, _, kind = pattern.removeprefix("layers.#.").rpartition(".")
    if kind not in ("weight", "bias"):
        stem, kind = f"{stem}.{kind}", "weight"
    bias = ", bias" if kind == "bias" else ""
    if pattern.replace(".bias", ".weight") in _WORDS:
        return f"{_WORDS[pattern.replace('.bias', '.weight')]}{bias}"
    for head, of in (("mlp.experts.#.", "of each expert"), ("mlp.shared.", "of the shared expert")):
        if stem.startswith(head):
            return f"{_PIECES.get(stem.removeprefix(head), stem.removeprefix(head))} {of}{bias}"
    if stem.startswith("attention.experts.#."):
        return f"attention: {_PIECES.get(stem.split('#.')[1], stem.split('#.')[1])} of each expert{bias}"
    for head, of in (("attention.", "attention"), ("mlp.", "feed-forward")):
        if stem.startswith(head):
            return f"{of}: {_PIECES.get(stem.removeprefix(head), re.sub('[._]', ' ', stem.removeprefix(head)))}{bias}"
    return f"{re.sub('[._]', ' ', stem)}{bias}"


def named_together(names: list[str]) -> str:
    """What a tensor is that holds all of these parameters: `gate and up of each expert`."""
    words = list(dict.fromkeys(in_words(name) for name in names))
    if len(words) == 1:
        return words[0]
    for ending in ("of each expert", "of the shared expert"):
        if all(word.endswith(ending) for word in words):
            return f"{_and([word.removesuffix(ending).strip() for word in words])} {ending}"
    heads = {word.partition(": ")[0] for word in words if ": " in word}
    if len(heads) == 1 and all(": " in word for word in words):
        return f"{heads.pop()}: {_and([word.partition(': ')[2] for word in words])}"
    return _and(words)


def _and(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
