"""The manifest of a converted checkpoint: the SHA-256 of each file, and what it was made from. Torch-free."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from moesaic.core.errors import CheckpointError

NAME = "moesaic-manifest.json"
PIECE = 16 << 20
READERS = 4


@dataclass(frozen=True)
class Entry:
    """One file: its SHA-256 in hexadecimal, and its bytes."""

    sha256: str
    size: int


@dataclass
class Manifest:
    """What a folder holds.

    Attributes:
        made: what made it: format, options, and what distinguishes the source.
        complete: all of its files are listed; else the conversion stopped, or goes on.
    """

    made: Mapping[str, object]
    files: dict[str, Entry] = field(default_factory=dict)
    complete: bool = False

    def save(self, folder: str) -> None:
        """Write it into `folder`, whole or not at all."""
        temporary = os.path.join(folder, f"{NAME}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"version": 1, **asdict(self)}, file, indent=1)
            file.write("\n")
        os.replace(temporary, os.path.join(folder, NAME))

    @classmethod
    def load(cls, folder: str) -> "Manifest | None":
        """The manifest in `folder`; None where there is none. Raises CheckpointError for a damaged one."""
        path = os.path.join(folder, NAME)
        try:
            with open(path, encoding="utf-8") as file:
                found = json.load(file)
            files = {name: Entry(str(e["sha256"]), int(e["size"])) for name, e in found["files"].items()}
            return cls(dict(found["made"]), files, bool(found["complete"]))
        except (FileNotFoundError, NotADirectoryError):  # the latter: a GGUF file is the whole checkpoint
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{path} is damaged ({e!r})") from e

    def holds(self, folder: str, name: str) -> bool:
        """Whether file `name` of `folder` is there and is what it was."""
        return name in self.files and _wrong(folder, name, self.files[name], lambda count: None) is None


def verify(folder: str, advance: Callable[[int], None] = lambda count: None) -> Manifest:
    """See that every file of `folder` is what its manifest says, all bytes of it.

    Args:
        advance: told the bytes read since its last call; threads call it.

    Raises:
        CheckpointError: there is no manifest, or files differ from it: all of them are named.
    """
    manifest = Manifest.load(folder)
    if manifest is None:
        raise CheckpointError(
            f"{folder} has no {NAME}, so that nothing tells what its files should be; `moesaic convert` writes one"
        )
    if not manifest.complete:
        raise CheckpointError(f"{folder}: its conversion did not end; run the same `moesaic convert` again")
    with ThreadPoolExecutor(READERS, "verify") as pool:
        wrong = pool.map(lambda item: _wrong(folder, item[0], item[1], advance), manifest.files.items())
        found = [line for line in wrong if line is not None]
    if found:
        raise CheckpointError(f"{folder} is not what its {NAME} says:\n  " + "\n  ".join(found))
    return manifest


def hash_file(path: str, advance: Callable[[int], None] = lambda count: None) -> Entry:
    """The SHA-256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            size += count
            advance(count)
    return Entry(digest.hexdigest(), size)


def _wrong(folder: str, name: str, entry: Entry, advance: Callable[[int], None]) -> str | None:
    """What is wrong with a file, or None."""
    path = os.path.join(folder, name)
    try:
        size = os.stat(path).st_size
        if size != entry.size:
            return f"{name} has {size} bytes, not {entry.size}"
        found = hash_file(path, advance)
    except OSError as e:
        return f"{name} cannot be read: {e.strerror or e}"
    if found.sha256 != entry.sha256:
        return f"{name} has another content: its SHA-256 is {found.sha256[:16]}..., not {entry.sha256[:16]}..."
    return None
