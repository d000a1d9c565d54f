"""The tokenizer in a GGUF file's metadata, made with the `tokenizers` library. Torch-free.

What splits text before its pieces are merged is only named in the file (`tokenizer.ggml.pre`); `tokenizers.json` holds
the expressions behind these names, as the models' own tokenizer.json have them, whether a whole word that is a token is
taken as it is, and whether a text begins with the token of beginnings where the file says nothing of it. A name that is
not among them is refused: with another expression, text would become other tokens than those the model was trained on.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from moesaic.core.errors import CheckpointError, UnsupportedError, unknown_name
from moesaic.weights.containers.gguf import gguf_alone
from moesaic.weights.containers.gguf_header import read_gguf_header

FILE = Path(__file__).parent / "tokenizers.json"
HINT = "give --tokenizer a folder that has the model's own"
SPACE = "\u2581"  # SentencePiece's
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # of tokenizer.ggml.token_type
WHOLE = "tokenizer.huggingface.json"
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


@cache
def _known() -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Our word for each kind of tokenizer, and how text is split, by name."""
    table = json.loads(FILE.read_text())
    return table["kinds"], {name: split for split in table["splits"] for name in split["names"]}


def gguf_metadata(path: str) -> Mapping[str, Any]:
    """The metadata of the GGUF checkpoint that `path` is or holds; {} where it holds other weights, or none."""
    shards = gguf_alone(path)
    return read_gguf_header(shards[0]).metadata if shards else {}


def gguf_tokenizer(metadata: Mapping[str, Any], where: str) -> Any:
    """The `tokenizers.Tokenizer` that the metadata of file `where` describe.

    Raises:
        UnsupportedError: it is of a kind that is not read, or splits text in a way that is not known.
        CheckpointError: the metadata are incomplete.
    """
    from tokenizers import Tokenizer

    try:
        if isinstance(metadata.get(WHOLE), str):
            return Tokenizer.from_str(metadata[WHOLE])
        name = metadata.get("tokenizer.ggml.model")
        kind = _known()[0].get(str(name))
        if kind is None:
            raise UnsupportedError(f"{where}: its tokenizer is of the kind {name!r}, which is not read: {HINT}")
        tokens = _strings(metadata, "tokenizer.ggml.tokens", where)
        if kind == "bytes":
            split = _split(metadata, where)
            tokenizer, begins = (
                _byte_level(split, tokens, _strings(metadata, "tokenizer.ggml.merges", where)),
                split["begins"],
            )
        else:
            tokenizer, begins = _sentence_piece(metadata, tokens, where), True
        _add_special(tokenizer, metadata, tokens)
        _surround(tokenizer, metadata, tokens, begins)
    except (UnsupportedError, CheckpointError):
        raise
    except Exception as e:  # the library raises bare Exceptions
        raise CheckpointError(f"{where}: its tokenizer cannot be read ({e}): {HINT}") from e
    return tokenizer


def gguf_tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json would say: the text of special tokens, and the chat template."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    named = {name: metadata.get(f"tokenizer.ggml.{kind}_token_id") for name, kind in SPECIAL.items()}
    wanted = {i for i in named.values() if isinstance(i, int)}
    texts = {i: text for i, text in enumerate(tokens) if i in wanted}
    config = {name: texts[i] for name, i in named.items() if i in texts}
    template = metadata.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if isinstance(template, str) else {})


def _split(metadata: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, known = metadata.get("tokenizer.ggml.pre"), _known()[1]
    if name not in known:
        what = unknown_name("way of splitting text, tokenizer.ggml.pre", str(name), known)
        raise UnsupportedError(f"{where}: {what}; {HINT}")
    return known[name]


def _byte_level(split: Mapping[str, Any], tokens: list[str], merges: list[str]) -> Any:
    """BPE of bytes, each written as a printable character (GPT-2 and most after it)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=split["whole_words"]))
    splits = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in split["expressions"]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(metadata: Mapping[str, Any], tokens: list[str], where: str) -> Any:
    """SentencePiece's BPE: spaces are characters, and what has no token is spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise CheckpointError(f"{where}: tokenizer.ggml.scores are missing, or not one for each token")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    ranks = dict(zip(tokens, scores, strict=True))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=_merges(vocabulary, ranks), unk_token=tokens[unknown], fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefixed else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return tokenizer


def _merges(vocabulary: Mapping[str, int], ranks: Mapping[str, float]) -> list[tuple[str, str]]:
    """The pairs that merge, best first: each token cut in two tokens, wherever it can be."""
    pairs = []
    for token in vocabulary:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        found = [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]
        found.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        pairs += [(ranks[token], pair) for pair in found]
    pairs.sort(key=lambda entry: entry[0], reverse=True)  # stable
    return [pair for _, pair in pairs]


def _add_special(tokenizer: Any, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Tokens that are found in a text before it is split; those that control count as special."""
    from tokenizers import AddedToken

    kinds = list(metadata.get("tokenizer.ggml.token_type", ()))
    for wanted, special in ((CONTROL, True), (USER_DEFINED, False)):
        chosen = [token for token, kind in zip(tokens, kinds, strict=False) if kind == wanted and token]
        added = [AddedToken(token, normalized=False, special=special) for token in chosen]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _surround(tokenizer: Any, metadata: Mapping[str, Any], tokens: list[str], begins: bool) -> None:
    """Begin every text with the token of beginnings, end it with that of ends, where the file wants that; `begins`:
    whether one that says nothing of it wants the first."""
    from tokenizers import processors

    def wanted(which: str, absent: bool) -> list[tuple[str, int]]:
        i = metadata.get(f"tokenizer.ggml.{which}_token_id")
        if not metadata.get(f"tokenizer.ggml.add_{which}_token", absent) or not isinstance(i, int):
            return []
        return [(tokens[i], i)]

    first, last = wanted("bos", begins), wanted("eos", False)
    if not (first or last):
        return
    around = [[token for token, _ in part] for part in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*around[0], "$A", *around[1]],
        pair=[*around[0], "$A", *around[1], *(f"{token}:1" for token in around[0]), "$B:1", *(
            f"{token}:1" for token in around[1]
        )],
        special_tokens=list(dict.fromkeys(first + last)),
    )  # fmt: skip


def _strings(metadata: Mapping[str, Any], key: str, where: str) -> list[str]:
    values: Iterable[Any] | None = metadata.get(key)
    if values is None:
        raise CheckpointError(f"{where}: {key} is missing from its metadata: {HINT}")
    found = list(values)
    if not found or not isinstance(found[0], str):
        raise CheckpointError(f"{where}: {key} is no list of texts")
    return found
