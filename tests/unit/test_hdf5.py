"""HDF5 files: what lies in them, and what is refused."""

import sys

import h5py
import numpy as np
import pytest
import torch

from moesaic.core.errors import CheckpointError, UnsupportedError
from moesaic.weights.containers.hdf5 import read_header


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.h5"


def read(path, name, index=(), shape=None):
    info = read_header(str(path))[name]
    into = torch.empty(info.shape if shape is None else shape, dtype=torch.float64)
    info.read(index, into)
    return into


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f8", "<i4", "i1", "?"])
def test_numbers_of_every_kind(path, kind):
    numbers = np.arange(24).reshape(2, 3, 4).astype(kind)
    with h5py.File(path, "w") as file:
        file["a/b/weight"] = numbers
        file.create_dataset("a/c", data=numbers, chunks=(1, 2, 3), compression="gzip")
        file["scalar"] = numbers[1, 2, 3]
    expected = torch.from_numpy(numbers.astype("<f8"))
    for name in ("a.b.weight", "a.c"):
        assert torch.equal(read(path, name), expected)
        assert torch.equal(read(path, name, (1,), (3, 4)), expected[1])
        assert torch.equal(read(path, name, (1, slice(1, 3)), (2, 4)), expected[1, 1:3])
        assert torch.equal(read(path, name, (slice(0, 1),), (1, 3, 4)), expected[:1])
    assert read(path, "scalar") == expected[1, 2, 3]


@pytest.mark.parametrize("where", ["dataset", "group", "file"])
@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("said", ["bfloat16", "torch.bfloat16", b"bfloat16"])
def test_bfloat16_as_an_attribute_says(path, where, opaque, said):
    numbers = torch.randn(4, 3).bfloat16()
    bits = numbers.view(torch.uint16).numpy()
    with h5py.File(path, "w") as file:
        file["g/w"] = bits.view("V2") if opaque else bits
        holder = {"dataset": file["g/w"], "group": file["g"], "file": file}[where]
        holder.attrs["torch_dtype"] = said
    assert read_header(str(path))["g.w"].dtype == "BF16"
    assert torch.equal(read(path, "g.w"), numbers.double())


@pytest.mark.parametrize("opaque", [False, True])
def test_sixteen_bits_that_nothing_is_said_of_are_refused(path, opaque):
    with h5py.File(path, "w") as file:
        file["w"] = np.zeros(2, "V2" if opaque else "u2")
        file["w"].attrs["dtype"] = "int4"
    with pytest.raises(CheckpointError, match="dataset /w is .* which may be bfloat16 or something else"):
        read_header(str(path))


@pytest.mark.parametrize("kind", ["external", "soft", "virtual", "data elsewhere", "text", "twice", "cycle"])
def test_what_is_not_in_place_is_refused(path, tmp_path, kind):
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(4)
        if kind == "external":
            file["link"] = h5py.ExternalLink("other.h5", "/w")
        elif kind == "soft":
            file["link"] = h5py.SoftLink("/w")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f8")
            layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
            file.create_virtual_dataset("v", layout)
        elif kind == "data elsewhere":
            file.create_dataset("v", (8,), "f8", external=[(str(tmp_path / "secret"), 0, 64)])
        elif kind == "text":
            file["v"] = ["a", "b"]
        elif kind == "twice":
            file.create_group("g")
            file["h"] = file["g"]
        else:
            group = file.create_group("g")
            group["g"] = group
    with pytest.raises(CheckpointError, match="is a link to|in place|which is not read|linked more than once"):
        read_header(str(path))


def test_a_damaged_file(path):
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(400)
    whole = path.read_bytes()
    for cut in (0, 10, 1000, len(whole) - 8):
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="truncated, damaged or no HDF5 file"):
            read_header(str(path))


def test_without_h5py_what_brings_it_is_said(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UnsupportedError, match=r"pip install moesaic\[hdf5\]"):
        read_header(str(path))
