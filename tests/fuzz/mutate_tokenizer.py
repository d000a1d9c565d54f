"""Mutations of tokenizers and chat templates, by what is known to trouble the libraries that read them."""

import base64
import json
from random import Random
from typing import Any

from tests.fuzz.mutate_json import mutate_json, mutate_value, write

EXPRESSIONS = (
    "(a+)+$", "(a|a)*b", "(a*)*(b*)*c", "(?:(?:a{1000}){1000}){1000}", "(.*)*$", "(?=(a+))\\1+b", "[", "(", "\\",
    "", "(?<=a+)b", "a{1,100000}", "(?i)" + "a?" * 5000, "\\p{Foo}", "(?P<x>a)(?P=x)", "(" * 5000 + ")" * 5000,
    "(x+x+)+y", "^(([a-z])+.)+[A-Z]([a-z])+$", "\\G", "\\K", "(?~a)", "(?R)", "(?0)", "\\g<0>", ".{0}",
)  # fmt: skip
NORMALIZERS: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": ""}, "content": "xx"},
    {"type": "Replace", "pattern": {"Regex": ""}, "content": "x" * 10_000},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
    {"type": "Prepend", "prepend": "x" * 5_000},
    {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(range(64))).decode()},
    {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 4 + bytes(60)).decode()},
    {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\4\0\0\0\xff\xff\xff\xffab").decode()},
    {"type": "Precompiled", "precompiled_charsmap": ""},
    {"type": "Sequence", "normalizers": []},
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Foo"},
)
PRE: tuple[dict[str, Any], ...] = (
    {"type": "Digits", "individual_digits": True},
    {"type": "FixedLength", "length": 0},
    {"type": "FixedLength", "length": 2**63},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": "a"}, "behavior": "Foo", "invert": True},
    {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always", "split": True},
    {"type": "Punctuation", "behavior": "MergedWithPrevious"},
    {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 2000},
)
DECODERS: tuple[dict[str, Any], ...] = (
    {"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40},
    {"type": "Strip", "content": "ab", "start": 1, "stop": 0},
    {"type": "Strip", "content": " ", "start": 5, "stop": 5},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "WordPiece", "prefix": "", "cleanup": True},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1000},
    {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 2000},
    {"type": "BPEDecoder", "suffix": ""},
    {"type": "ByteFallback"},
)
TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'x' * 99999 }}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ 10**10**8 }}", "{{ 'a' * 99999999999999999999 }}", "{{ [0] * 10**10 }}",
    "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}{{ n.x }}",
    "{{ 'a'.replace('a', 'a' * 9999).replace('a', 'a' * 9999) }}", "{{ '%1000000000d' % 1 }}",
    "{{ 'a'.center(10**10) }}", "{{ 'a' | center(10**10) }}", "{{ '{:>9999999999}'.format(1) }}",
    "{{ messages[0].content | indent(10**10) }}", "{{ [1] | batch(10**9, 0) | list }}",
    "{{ messages.__class__.__mro__ }}", "{{ ''.__class__.__base__.__subclasses__() }}", "{{ cycler.__init__ }}",
    "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ messages[99].role }}", "{{ undefined_thing.x }}",
    "{{ messages | tojson(indent=9999999999) }}", "{% include '/etc/passwd' %}", "{% import 'x' as y %}",
    "{% extends 'x' %}", "{% block a %}{{ self.a() }}{% endblock %}", "{{ strftime_now('%' * 1000) }}",
    "{{ strftime_now(3) }}", "{{ strftime_now('\ud800') }}", "{{ lipsum(n=100000) }}", "{{ range(10**6) | list }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ messages | map(attribute='x') | sum }}",
    "{{ '\\ud800' }}", "{{ [[1]] | tojson }}", "{{ messages | tojson(default=1) }}", "{{ namespace | tojson }}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200, "{{ " + "-" * 5000 + "1 }}", "{{ 1" + " + 1" * 5000 + " }}",
    "{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "{{ 9 ** 9 ** 9 ** 9 }}", "{{ 1.5 % 0 }}", "{{ 'x' % 3 }}",
    "{% raw %}", "{{", "{%", "{#", "", "\0", "{{ caller() }}", "{{ 3 | round(10**9) }}", "{{ 'a' | wordwrap(0) }}",
    "{{ 'aaaa' | truncate(-5) }}", "{{ [3, 'a'] | sort }}", "{{ dict(a=1) | dictsort(by='x') }}", "{{ {} | first }}",
    "{% filter center(99999) %}{% endfilter %}", "{{ ''.join(['a' * 99999] * 99999) }}",
    "{{ 1 | slice(10**9) | list }}",
)  # fmt: skip


def mutate_tokenizer(data: bytes, r: Random) -> bytes:
    """tokenizer.json: half as any JSON, half by what its parts mean."""
    if r.random() < 0.5:
        return mutate_json(data, r)
    value = json.loads(data)
    for _ in range(r.choice((1, 1, 2))):
        r.choice((_model, _vocabulary, _merges, _split, _normalizer, _decoder, _added, _template, _padding))(value, r)
    return write(value, r, faults=False)


def _model(t: dict, r: Random) -> None:
    model, vocabulary = t["model"], t["model"]["vocab"]
    what = r.randrange(9)
    if what < 3:
        model["type"] = r.choice(("WordLevel", "WordPiece", "Unigram", "Foo", None))
        model["unk_token"] = r.choice(("no such", "a", None))
    elif what < 6:
        scores = [[token, r.choice((-1.0, 0.0, -1e308, 5))] for token in list(vocabulary)[: r.choice((0, 1, 300))]]
        unknown = r.choice((None, 0, 5, 10_000, 2**40))
        t["model"] = {"type": "Unigram", "vocab": scores, "unk_id": unknown, "byte_fallback": r.random() < 0.5}
    elif what == 6:
        model["dropout"] = r.choice((1.0, 0.5, 2.0, -1, "NaN"))
    else:
        model["byte_fallback"], model["unk_token"] = True, r.choice((None, "<unk>"))
        model["continuing_subword_prefix"] = r.choice(("##", "é", "x" * 100, ""))


def _vocabulary(t: dict, r: Random) -> None:
    vocabulary = t["model"]["vocab"]
    if isinstance(vocabulary, list):  # after another mutation
        vocabulary = t["model"]["vocab"] = {str(token): i for i, token in enumerate(vocabulary)}
    tokens = list(vocabulary)
    what = r.randrange(7)
    if what == 0:
        vocabulary.clear()
    elif what == 1:
        for token in r.sample(tokens, r.choice((1, 10, len(tokens) // 2))):
            del vocabulary[token]
    elif what == 2:
        for token in r.sample(tokens, 5):
            vocabulary[token] = r.choice((0, 1, 2**32 - 1, 2**32, 2**31, -1, 1.5, "1", 10**6))
    elif what == 3:
        vocabulary.update({"": 3, "\0": 4, "a" * 10_000: 2})
    elif what == 4:
        t["model"]["vocab"] = [[token, 0.0] for token in tokens]
    elif what == 5:
        t["model"]["vocab"] = dict.fromkeys(tokens, 7)
    else:
        vocabulary.update({f"more{i}": len(tokens) + i for i in range(20_000)})


def _merges(t: dict, r: Random) -> None:
    merges = t["model"]["merges"]
    strange = (
        ["no", "such"],
        "a b c",
        "ab",
        "",
        ["a"],
        ["a", "b", "c"],
        None,
        3,
        "no such",
        ["", ""],
        "a " + "b" * 9999,
    )
    for _ in range(r.choice((1, 3, 20))):
        merges.insert(r.randrange(len(merges) + 1), r.choice(strange))
    if r.random() < 0.3:
        r.shuffle(merges)


def _split(t: dict, r: Random) -> None:
    expression = r.choice(EXPRESSIONS)
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": r.random() < 0.3}
    t["pre_tokenizer"] = r.choice((split, split, r.choice(PRE), None))
    if t["pre_tokenizer"] and r.random() < 0.3:
        for _ in range(r.choice((1, 100))):
            t["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [t["pre_tokenizer"]]}


def _normalizer(t: dict, r: Random) -> None:
    t["normalizer"] = r.choice(NORMALIZERS)


def _decoder(t: dict, r: Random) -> None:
    t["decoder"] = r.choice(DECODERS)


def _added(t: dict, r: Random) -> None:
    token = {
        "id": r.choice((0, 1, 1535, 2000, 2**32 - 1, 2**32, -1)),
        "content": r.choice(("", "a", "<|end|>", "\0", "x" * 9999)),
        "single_word": r.random() < 0.5, "lstrip": r.random() < 0.5, "rstrip": r.random() < 0.5,
        "normalized": r.random() < 0.5, "special": r.random() < 0.5,
    }  # fmt: skip
    t["added_tokens"] = [*(t.get("added_tokens") or []), *[token] * r.choice((1, 2, 500))]


def _template(t: dict, r: Random) -> None:
    piece = {"SpecialToken": {"id": r.choice(("<|end|>", "no such")), "type_id": r.choice((0, 2**40))}}
    sequence = {"Sequence": {"id": r.choice("ABC"), "type_id": 0}}
    known = {"<|end|>": {"id": "<|end|>", "ids": r.choice(([1], [], [2**31], [1, 2])), "tokens": r.choice((["a"], []))}}
    single = r.choice(([piece, sequence], [piece], [], [sequence, sequence]))
    t["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}


def _padding(t: dict, r: Random) -> None:
    t["padding"] = {
        "strategy": {"Fixed": r.choice((3, 2**40))}, "direction": "Right", "pad_to_multiple_of": r.choice((None, 0)),
        "pad_id": 0, "pad_type_id": 0, "pad_token": "no such",
    }  # fmt: skip
    length = r.choice((0, 3, 2**63))
    t["truncation"] = {
        "direction": "Left",
        "max_length": length,
        "strategy": "LongestFirst",
        "stride": r.choice((0, 5)),
    }


def mutate_tokenizer_config(data: bytes, r: Random) -> bytes:
    """tokenizer_config.json, with special tokens and templates of the wrong kinds."""
    if r.random() < 0.5:
        return mutate_json(data, r)
    value = json.loads(data)
    what = (None, 3, [], ["a"], [{}], [{"name": "default", "template": 3}], {"default": "x"}, r.choice(TEMPLATES), True)
    value[r.choice(("chat_template", "eos_token", "bos_token", "unk_token"))] = r.choice(what)
    return write(mutate_value(value, r) if r.random() < 0.3 else value, r, faults=False)


def mutate_template(data: bytes, r: Random) -> bytes:
    """A template that troubles; or the good one, damaged."""
    if r.random() < 0.7:
        return r.choice(TEMPLATES).encode(errors="surrogatepass")
    text = data.decode()
    at, to = sorted((r.randrange(len(text)), r.randrange(len(text))))
    new = (
        text[:at]
        + r.choice(("", "}}", "{{", "{% endfor %}", "{% if", "'", text[at:to] * 3, r.choice(TEMPLATES)))
        + text[to:]
    )
    return new.encode(errors="surrogatepass") + r.choice((b"", b"", b"\xff"))
