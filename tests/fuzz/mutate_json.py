"""Mutations of JSON: values of the wrong type and size, and texts that are hardly JSON."""

import json
from copy import deepcopy
from random import Random
from typing import Any

RAW = "\x02raw:{}\x03"  # where a text is put that json would not write
TEXTS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "9" * 5000, "-" + "9" * 30, "1e-400", "0.1e1",
    "[" * 300 + "]" * 300, "[" * 100_000, '{"a":' * 2000 + "1" + "}" * 2000, '"\\ud800"', '"\\u0000"', "01", "+1",
    '{"a":1,"a":2}',
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**32, 2**53, 2**63, 2**64, 10**18, 10**30, 0.5, -0.5, 1e308, 1e-308,
    "", "a", "0", "../../etc/passwd", "x" * 100_000, "٣", "\U0001f600", "[bold red]", "{0}", "%s", [], {}, [None],
    [1, 2, 3], [-1], [[]], {"a": 1}, {"": None}, [0] * 10_000, "\ud800", 100_000, 1_000_000,
)  # fmt: skip


def mutate_json(data: bytes, r: Random) -> bytes:
    """A JSON file with one or a few values changed, or its text damaged."""
    value = json.loads(data)
    for _ in range(r.choice((1, 1, 1, 2, 5))):
        value = mutate_value(value, r)
    return write(value, r)


def mutate_value(value: Any, r: Random) -> Any:
    """The value with something in it changed; each level of it is as likely as the next."""
    value = deepcopy(value)
    if not isinstance(value, dict | list) or not value or r.random() < 0.02:
        return _strange(value, r)
    holder, key = value, _any_key(value, r)
    while isinstance(holder[key], dict | list) and holder[key] and r.random() < 0.75:
        holder = holder[key]
        key = _any_key(holder, r)
    what = r.randrange(8)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[r.choice((key + "s", key.upper(), "", "\0", "experts_num", key[:-1]))] = holder.pop(key)
    elif what == 2:
        other = _any_key(holder, r)
        holder[key], holder[other] = holder[other], holder[key]
    elif what == 3 and isinstance(holder, list):
        holder.insert(r.randrange(len(holder) + 1), deepcopy(holder[key]))
    else:
        holder[key] = _strange(holder[key], r)
    return value


def _any_key(holder: Any, r: Random) -> Any:
    return r.choice(list(holder)) if isinstance(holder, dict) else r.randrange(len(holder))


def _strange(value: Any, r: Random) -> Any:
    what = r.randrange(10)
    if what < 2:
        return RAW.format(r.randrange(len(TEXTS)))
    if what < 4 and isinstance(value, int | float) and not isinstance(value, bool):
        return r.choice((-value, value + 1, value * 2, value * 1000, value * 10**9, float(value), str(value), [value]))
    if what == 4:
        return [value] * r.choice((0, 1, 3, 1000)) if len(repr(value)) < 1000 else [value]
    if what == 5:
        return {"value": value}
    return deepcopy(r.choice(VALUES))


def write(value: Any, r: Random, faults: bool = True) -> bytes:
    """As JSON; now and then as what is hardly JSON."""
    text = json.dumps(value, ensure_ascii=r.random() < 0.5 or "\\ud8" in json.dumps(value))
    for number, raw in enumerate(TEXTS):
        text = text.replace(json.dumps(RAW.format(number)), raw)
    data = text.encode(errors="surrogatepass")
    if not faults or r.random() < 0.85:
        return data
    return (
        lambda: data[: r.randrange(len(data))],
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16", errors="surrogatepass"),
        lambda: data + b"\0" * 100,
        lambda: data.replace(b":", b"=", 1),
        lambda: data + data,
        lambda: b"",
        lambda: b"\xff\xfe\xfd" + data,
        lambda: b"[" * 1_000_000,
        lambda: b"[" + b"[]," * 3_000_000 + b"1]",
        lambda: b" " * 5_000_000 + data,
        lambda: data[:-1] + b',"x":"' + b"y" * 20_000_000 + b'"}',
    )[r.randrange(12)]()
