"""What can be wrong with a folder, whatever its files hold: links, folders in place of files, files that change."""

import json
import os
import shutil
from pathlib import Path
from random import Random

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NAMES = ("model.safetensors", "pytorch_model.bin", "a.gguf", "x.h5")
ELSEWHERE = (
    "../../../../../etc/passwd", "/etc/passwd", "../safetensors/model.safetensors", "/dev/zero", ".", "", "a\0b",
    "config.json", "model.safetensors.index.json", "x" * 5000, "\ud800",
)  # fmt: skip


def mutate_folder(folder: Path, r: Random) -> str:
    """Do one thing to a checkpoint; says what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = r.choice(files)
    deeds = {
        "removed": file.unlink,
        "emptied": lambda: _replace(file, b""),
        "a folder": lambda: (file.unlink(), file.mkdir()),
        "a link to itself": lambda: (file.unlink(), file.symlink_to(file.name)),
        "a link to nothing": lambda: (file.unlink(), file.symlink_to("nowhere")),
        "a link to its folder": lambda: (file.unlink(), file.symlink_to(".")),
        "a device without end": lambda: (file.unlink(), file.symlink_to("/dev/zero")),
        "an empty device": lambda: (file.unlink(), file.symlink_to("/dev/null")),
        "a pipe": lambda: (file.unlink(), os.mkfifo(file)),
        "a Git LFS pointer": lambda: _replace(file, POINTER),
        "another file's bytes": lambda: _replace(file, r.choice(files).read_bytes()),
        "sparse and huge": lambda: _sparse(file),
        "a loop of folders": lambda: (folder / "experts").symlink_to(folder),
        "deep folders": lambda: (folder / "/".join(["layers"] * 200)).mkdir(parents=True),
        "a name that is no text": lambda: (folder / os.fsdecode(b"\xff\xfe.safetensors")).write_bytes(b"x" * 100),
        "a second checkpoint beside": lambda: (folder / "more.bin").write_bytes(b"PK\3\4" + bytes(200)),
        "all removed": lambda: (shutil.rmtree(folder), folder.mkdir()),
        "an index to elsewhere": lambda: _index(folder, r),
        "renamed": lambda: file.rename(file.with_name(r.choice(NAMES))),
    }  # fmt: skip
    what = r.choice(sorted(deeds))
    deeds[what]()
    return f"{file.relative_to(folder)}: {what}"


def _replace(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


def _sparse(file: Path) -> None:
    data = file.read_bytes()
    _replace(file, data)
    os.truncate(file, 1 << 36)


def _index(folder: Path, r: Random) -> None:
    name = r.choice(ELSEWHERE)
    kind = r.choice(("model.safetensors", "pytorch_model.bin"))
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name, "a": name}}))
