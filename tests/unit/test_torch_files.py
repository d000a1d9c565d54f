"""torch's own files: read as torch reads them, without torch, and without running what they carry."""

import argparse
import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from moesaic.core.errors import CheckpointError
from moesaic.weights.containers.pickled import read_pickle
from moesaic.weights.containers.pickled_tensors import PickledTensor, Placeholder
from moesaic.weights.containers.torch_file import read_header

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
]  # fmt: skip


def read_all(path, **options):
    out = {}
    for name, info in read_header(str(path), **options).items():
        into = torch.empty(info.shape, dtype=torch.complex64 if info.dtype == "C64" else torch.float64)
        info.read((), into)
        out[name] = into
    return out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_protocol(tmp_path, dtype, protocol):
    state = {"a.weight": (torch.randn(5, 3) * 4).to(dtype), "b.weight": torch.zeros(0, 2).to(dtype)}
    torch.save(state, tmp_path / "x.bin", pickle_protocol=protocol)
    header = read_header(str(tmp_path / "x.bin"))
    assert {name: info.shape for name, info in header.items()} == {"a.weight": (5, 3), "b.weight": (0, 2)}
    into = torch.empty(5, 3, dtype=dtype)
    header["a.weight"].read((), into)
    assert torch.equal(into.view(torch.uint8), state["a.weight"].view(torch.uint8))


def test_views_share_a_storage(tmp_path):
    whole = torch.arange(120.0).view(4, 5, 6)
    views = {
        "transposed": whole[0].t(), "offset": whole[2], "steps": whole[:, ::2, 1::2], "scalar": whole[1, 2, 3],
        "expanded": whole[0, :1].expand(3, 6), "parameter": torch.nn.Parameter(whole[1]),
        "permuted": whole.permute(2, 0, 1),
    }  # fmt: skip
    torch.save(views, tmp_path / "x.bin")
    assert (tmp_path / "x.bin").stat().st_size < 4000  # one storage
    header = read_header(str(tmp_path / "x.bin"))
    for name, view in views.items():
        for index in [
            (),
            *([(slice(1, 3),)] if view.dim() > 1 else []),
            *([(2, slice(0, 2))] if view.dim() > 2 else []),
        ]:
            into = torch.empty_like(view[index], dtype=torch.float64)
            header[name].read(index, into)
            assert torch.equal(into, view[index].double()), (name, index)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_training_state_beside_the_model_is_left_alone(tmp_path, wrapper):
    state = collections.OrderedDict({"a.weight": torch.randn(2, 2), "b.bias": torch.randn(2)})
    state._metadata = {"": {"version": 1}}  # as a module's state_dict has it
    around = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(9)}}}, wrapper: state}
    torch.save(around, tmp_path / "x.pt")
    assert read_all(tmp_path / "x.pt").keys() == state.keys()


def test_nested_dictionaries_are_flattened_and_settings_left_out(tmp_path):
    nested = {
        "model": {"embed": {"weight": torch.ones(2, 2)}, "layers": [{"w": torch.zeros(1)}, {"w": torch.ones(1)}]},
        "version": 2, "name": "x", "sizes": [1, 2], "shape": torch.Size([3]), "dtype": torch.float16, "none": None,
    }  # fmt: skip
    torch.save(nested, tmp_path / "x.pt")
    assert set(read_all(tmp_path / "x.pt")) == {"model.embed.weight", "model.layers.0.w", "model.layers.1.w"}


def test_a_file_that_is_one_tensor(tmp_path):
    torch.save(torch.eye(3), tmp_path / "x.bin")
    assert torch.equal(read_all(tmp_path / "x.bin")[""], torch.eye(3).double())


@pytest.mark.parametrize("kind", ["old", "compressed"])
def test_what_torch_must_load(tmp_path, kind):
    state = {"model": {"a.weight": torch.randn(3, 2)}, "step": 1}
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=kind == "compressed")
    if kind == "compressed":
        with zipfile.ZipFile(path) as plain, zipfile.ZipFile(tmp_path / "y.bin", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in plain.namelist():
                packed.writestr(name, plain.read(name))
        path = tmp_path / "y.bin"
    assert torch.equal(read_all(path)["a.weight"], state["model"]["a.weight"].double())


def test_headers_need_no_torch(tmp_path):
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    code = (
        "import sys; from moesaic.weights.sources import open_source; "
        f"print(list(open_source({str(tmp_path)!r}).tensors), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['a.weight'] False"


# What must not be run, and what is damaged.


class Evil:
    """What a malicious file would carry."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("lenient", [False, True])
def test_nothing_that_a_file_carries_is_run(tmp_path, lenient):
    marker = tmp_path / "executed"
    torch.save({"model": {"a.b": torch.ones(1)}, "args": Evil(marker)}, tmp_path / "x.bin")
    with pytest.raises(pickle.UnpicklingError):  # the gadget is one
        torch.load(tmp_path / "x.bin", weights_only=True)
    if lenient:
        assert set(read_all(tmp_path / "x.bin", lenient=True)) == {"a.b"}
    else:
        with pytest.raises(CheckpointError, match=r"it holds more than weights: loading it would call \w+\.system"):
            read_header(str(tmp_path / "x.bin"))
    assert not marker.exists()
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert marker.exists()  # it would have been


def test_settings_of_a_training_program_become_nothing(tmp_path):
    args = argparse.Namespace(lr=0.1, path=os.fspath)
    torch.save({"args": args, "model": {"a.b": torch.ones(1), "a._extra_state": args}}, tmp_path / "x.pt")
    assert set(read_all(tmp_path / "x.pt", lenient=True)) == {"a.b"}
    with pytest.raises(CheckpointError, match="would call argparse.Namespace"):
        read_header(str(tmp_path / "x.pt"))
    torch.save({"model": {"a.b": torch.ones(1), "a.c": args}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="a.c is kept as a argparse.Namespace, which is no plain tensor"):
        read_header(str(tmp_path / "x.pt"), lenient=True)
    assert isinstance(read_pickle(pickle.dumps(args, 2), "x", lenient=True), Placeholder)


PICKLES = {
    "a memo beyond memory": b"\x80\x02}r\xff\xff\xff\xff.",
    "a string beyond the file": b"\x80\x02X\xff\xff\xff\x7fa.",
    "bytes beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    "an array beyond the file": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
    "a frame beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an empty stack": b"\x80\x02.",
    "a mark that is none": b"\x80\x02u.",
    "an unknown memo": b"\x80\x02h\x05.",
    "steps without end": b"\x80\x02" + b"]0" * 1_500_000 + b".",
    "an extension": b"\x80\x02\x82\x01.",
    "a call of a number": b"\x80\x02K\x01)R.",
    "a storage that is none": b"\x80\x02K\x01Q.",
    "a tensor of nothing": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
}


@pytest.mark.parametrize("data", PICKLES.values(), ids=PICKLES)
def test_crafted_pickles(data):
    try:
        found = read_pickle(data, "x.bin")
    except CheckpointError as e:
        assert "cannot read x.bin" in str(e)
    else:
        assert found == {}  # "a memo beyond memory" and the frame are no more than numbers here


def tensor_pickle(numel, offset, shape, strides):
    """A pickle of one float tensor over a storage of so many numbers."""
    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is storage else None

    class Tensor:
        def __reduce__(self):
            function = torch._utils._rebuild_tensor_v2
            return (function, (storage, offset, shape, strides, False, collections.OrderedDict()))

    out = io.BytesIO()
    Pickler(out, 2).dump(Tensor())
    return out.getvalue()


def test_tensors_lie_within_their_storage():
    assert isinstance(read_pickle(tensor_pickle(6, 0, (2, 3), (3, 1)), "x"), PickledTensor)
    for case in [
        (5, 0, (2, 3), (3, 1)), (6, 1, (2, 3), (3, 1)), (6, 0, (2, 3), (4, 1)), (6, -1, (2,), (1,)),
        (6, 0, (-2,), (1,)), (6, 0, (2, 3), (1,)), (6, 0, (2,), (-1,)), (6, 0, ("2",), (1,)), (6, 0, (1 << 70,), (0,)),
    ]:  # fmt: skip
        with pytest.raises(CheckpointError, match="pickle is damaged: a tensor"):
            read_pickle(tensor_pickle(*case), "x")


def test_every_truncation_is_told(tmp_path):
    torch.save({"a.weight": torch.randn(40), "b.weight": torch.ones(3)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for cut in [0, 1, 2, 30, 100, *range(200, len(whole), 97), len(whole) - 1]:
        (tmp_path / "x.bin").write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="cannot read .*x.bin"):
            read_header(str(tmp_path / "x.bin"))


def test_mutations_never_crash(tmp_path):
    """Bytes of directory and pickle are changed: the file is read, or refused."""
    torch.save({"a.weight": torch.randn(8), "b": [torch.ones(3), 1]}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        data = bytearray(whole)
        for at in torch.randint(len(whole), (3,), generator=generator).tolist():
            data[at] = int(torch.randint(256, (1,), generator=generator))
        (tmp_path / "y.bin").write_bytes(data)
        try:
            for info in read_header(str(tmp_path / "y.bin")).values():
                info.read((), torch.empty(info.shape, dtype=torch.float64))
        except CheckpointError:
            continue


@pytest.mark.parametrize("kind", ["TorchScript", "another zip", "a pickle", "a bomb"])
def test_other_kinds_of_file_are_named(tmp_path, kind):
    path, match = tmp_path / "x.pt", ""
    if kind == "TorchScript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        match = "it is a TorchScript program"
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", b"x")
        match = "none that torch.save writes"
    elif kind == "a pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
        match = "no file of torch's"
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", bytes(1 << 27))
        match = "unpack to 134217728 hold no weights"
    with pytest.raises(CheckpointError, match=match):
        read_header(str(path))
