"""Mutations of files as bytes, and of what begins with a JSON header."""

import json
import math
import struct
from collections.abc import Callable
from random import Random

from tests.fuzz.mutate_json import mutate_value, write

HUGE = (0, 1, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = (
    "", "0", "5", "123456789012345678901234567890", "experts", "w1", "layers", "{l}", "{e}", "{x}", "*", "a\"b",
    "q_proj", "\\", "\n", "x" * 300, "\ud800", "[bold]", "gate_up_proj", "é", "_", "-1",
)  # fmt: skip
Mutate = Callable[[bytes, Random], bytes]


def mutate_bytes(data: bytes, r: Random) -> bytes:
    """One to a few of: bits flipped, a piece cut, repeated, zeroed or put elsewhere, a length made huge."""
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        data = r.choice((_flip, _flip_early, _cut, _drop, _repeat, _zero, _swap, _number, _noise))(data, r)
    return data


def _at(data: bytes, r: Random) -> int:
    return r.randrange(len(data)) if data else 0


def _flip(data: bytes, r: Random) -> bytes:
    out = bytearray(data)
    for _ in range(r.choice((1, 4, 64))):
        if out:
            out[r.randrange(len(out))] ^= 1 << r.randrange(8)
    return bytes(out)


def _flip_early(data: bytes, r: Random) -> bytes:
    head = min(len(data), r.choice((16, 256, 4096)))
    return _flip(data[:head], r) + data[head:]


def _cut(data: bytes, r: Random) -> bytes:
    return data[: r.choice((0, 1, 7, 8, 9, len(data) - 1, _at(data, r), min(len(data), r.randrange(4096))))]


def _drop(data: bytes, r: Random) -> bytes:
    at = _at(data, r)
    return data[:at] + data[at + r.choice((1, 8, 100, 5000)) :]


def _repeat(data: bytes, r: Random) -> bytes:
    at = _at(data, r)
    return data[:at] + data[at : at + r.choice((1, 8, 100))] * r.choice((2, 50)) + data[at:]


def _zero(data: bytes, r: Random) -> bytes:
    at, count = _at(data, r), r.choice((1, 8, 512))
    return data[:at] + bytes(len(data[at : at + count])) + data[at + count :]


def _swap(data: bytes, r: Random) -> bytes:
    a, b = sorted((_at(data, r), _at(data, r)))
    return data[:a] + data[b:] + data[a:b]


def _number(data: bytes, r: Random) -> bytes:
    """A 32- or 64-bit number, wherever it lies, made strange."""
    raw = struct.pack("<Q", r.choice(HUGE))[: r.choice((4, 8))]
    at = r.randrange(max(1, min(len(data), r.choice((64, 2048, len(data) + 1)))))
    return data[:at] + raw + data[at + len(raw) :]


def _noise(data: bytes, r: Random) -> bytes:
    at = _at(data, r)
    return data[:at] + r.randbytes(r.choice((1, 16, 3000))) + data[at:]


def mutate_safetensors(data: bytes, r: Random) -> bytes:
    """The header as JSON, its length, or the bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    choice = r.randrange(10)
    if choice < 2:
        return mutate_bytes(data, r)
    if choice == 2:
        return struct.pack("<Q", r.choice((*HUGE, length + 1, length - 1, len(data) - 8))) + data[8:]
    if choice == 3:  # a header that is large for what it says
        filler = r.choice((b"[],", b"{},", b'"a",', b"1,", b"[[[[[[")) * r.choice((1000, 1_000_000))
        text = b'{"a":[' + filler + b"1]}"
        return struct.pack("<Q", len(text)) + text + body
    if choice < 8:
        _strange_entry(header, r)
        text = write(header, r, faults=False)
    else:
        text = write(mutate_value(header, r), r)
    return struct.pack("<Q", len(text)) + text + body


def mutate_names(data: bytes, r: Random) -> bytes:
    """A safetensors file that stays whole: tensors have other names, other shapes of as many numbers, other dtypes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    for _ in range(r.choice((1, 1, 3, len(header)))):
        name = r.choice(sorted(header))
        entry = header.pop(name)
        what = r.randrange(6)
        if what == 0:
            entry["shape"] = [*entry["shape"][::-1]]
        elif what == 1:
            entry["shape"] = r.choice(([1, *entry["shape"]], [*entry["shape"], 1], [math.prod(entry["shape"])]))
        elif what == 2:
            entry["dtype"] = r.choice(("I32", "U32"))
        elif what == 3:
            words = name.split(".")
            words[r.randrange(len(words))] = r.choice(NAMES)
            name = ".".join(words)
        elif what == 4:
            name = r.choice((name.replace("1", "7"), name.replace("0", "99999999"), name.replace(".", "/"), name[::-1]))
        else:
            other = r.choice(sorted(header)) if header else name
            header[name] = header.pop(other, entry)
            name = other
        header[name] = entry
    text = json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def _strange_entry(header: dict, r: Random) -> None:
    names = [name for name in header if name != "__metadata__"]
    name, other = r.choice(names), r.choice(names)
    entry = header[name]
    begin, end = entry["data_offsets"]
    what = r.randrange(12)
    if what == 0:
        entry["shape"] = [r.choice((*HUGE, -1, -(2**63), True, 1.5, "3", None, 10**400)) for _ in entry["shape"]]
    elif what == 1:
        entry["shape"] = entry["shape"][::-1] + [1] * r.choice((1, 60, 5000))
    elif what == 2:
        entry["data_offsets"] = [r.choice((begin, *HUGE, -1)), r.choice((end, *HUGE, -1))]
    elif what == 3:
        entry["data_offsets"] = header[other]["data_offsets"]
    elif what == 4:
        entry["dtype"] = r.choice(("F64", "I8", "BF16", "F8_E4M3", "F4", "U64", "BOOL", "X", "", 3, None, "C64"))
    elif what == 5:
        header[r.choice(("../../etc/passwd", "", "\0", "a" * 100_000, "\ud800", "[bold]", "model.norm.weight."))] = (
            entry
        )
    elif what == 6:
        header[name.replace("0", r.choice(("99999999999999999999", "-1", "1e9", "٣", "²")))] = header.pop(name)
    elif what == 7:
        del header[name]
    elif what == 8:
        entry["shape"] = [r.choice((0, 2**62))] * r.choice((1, 3)) + [0]
        entry["data_offsets"] = [begin, begin]
    elif what == 9:
        header[name], header[other] = header[other], header[name]
    elif what == 10:
        entry["shape"] = [2**62] * 4000
    else:
        header["__metadata__"] = r.choice((None, 3, [], {"a": 1}, {"format": "x" * 10_000}))
