"""Mutations of GGUF files, whose fields are found as the format's document lays them out."""

import struct
from random import Random

from tests.fuzz.mutate_bytes import HUGE, mutate_bytes

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a scalar, by its type
STRING, ARRAY = 8, 9
Field = tuple[str, int, int]  # what it is, where it lies, its bytes


def fields_of(data: bytes) -> list[Field]:
    """Every count, length, type, number and text in the header of a good file."""
    fields: list[Field] = [("version", 4, 4), ("count", 8, 8), ("count", 16, 8)]
    tensors, values = struct.unpack_from("<QQ", data, 8)
    at = 24

    def field(kind: str, size: int) -> int:
        nonlocal at
        fields.append((kind, at, size))
        at += size
        return int.from_bytes(data[at - size : at], "little") if size <= 8 else 0

    def text(kind: str) -> None:
        field(kind, field("length", 8))

    for _ in range(values):
        text("key")
        kind = field("type", 4)
        if kind == STRING:
            text("text")
        elif kind == ARRAY:
            kind, count = field("type", 4), field("count", 8)
            for _ in range(count):
                if kind == STRING:
                    text("element")
                else:
                    field("element", SIZES[kind])
        else:
            field("value", SIZES[kind])
    for _ in range(tensors):
        text("name")
        for _ in range(field("dims", 4)):
            field("size", 8)
        field("type", 4)
        field("offset", 8)
    return fields


def mutate_gguf(data: bytes, r: Random) -> bytes:
    """A few fields of the header, of each kind as likely; or bytes anywhere."""
    if r.random() < 0.2:
        return mutate_bytes(data, r)
    fields = fields_of(data)
    kinds = sorted({kind for kind, _, _ in fields})
    for _ in range(r.choice((1, 1, 2, 4))):
        chosen = r.choice(kinds)
        _, at, size = r.choice([field for field in fields if field[0] == chosen])
        data = data[:at] + _strange(data[at : at + size], chosen, r) + data[at + size :]
        if len(data) != at + size + len(data[at + size :]):  # what follows lies elsewhere now
            break
    return data


def _strange(old: bytes, kind: str, r: Random) -> bytes:
    if kind in ("key", "text", "name", "element") and (kind != "element" or len(old) not in (1, 2, 4, 8)):
        same = bytes(r.choice(b"\0\xff\x80ab.0") for _ in old) if r.random() < 0.3 else old[::-1]
        return r.choice((same, old.swapcase(), old.replace(b"0", b"9"), old.replace(b".", b"/")))
    if kind == "type":
        return struct.pack("<I", r.choice((*range(14), 30, 39, 99, 2**31, 2**32 - 1)))
    number = int.from_bytes(old, "little")
    chosen = r.choice((*HUGE, number + 1, max(0, number - 1), number * 2, number * 1000, number ^ 32, 2**60 + number))
    return struct.pack("<Q", chosen % 2**64)[: len(old)]
