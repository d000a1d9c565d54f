"""Tensors whose parts lie in several files."""

import pytest
import torch
from safetensors.torch import save_file

from moesaic.weights.containers.safetensors import read_header
from moesaic.weights.layouts.joined import join


def parts(folder, tensors):
    for rank, tensor in enumerate(tensors):
        save_file({"x": tensor.contiguous()}, folder / f"{rank}.safetensors")
    return [read_header(str(folder / f"{rank}.safetensors"))["x"] for rank in range(len(tensors))]


INDICES = [(), (slice(0, 5),), (slice(2, 9),), (slice(7, 8),), (3,), (3, slice(1, 4)), (slice(4, 4),)]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["rows", "columns", "halves"])
def test_any_part_is_as_of_the_whole(tmp_path, how, dtype, index):
    whole = torch.randn(12, 6)
    if how == "halves":
        gate, up = whole.chunk(2)
        infos = parts(tmp_path, [torch.cat(pair) for pair in zip(gate.chunk(3), up.chunk(3), strict=True)])
        joined = join(infos, 0, halves=True)
    else:
        dim = 0 if how == "rows" else 1
        joined = join(parts(tmp_path, whole.chunk(3, dim)), dim)
    assert joined.shape == (12, 6) and len(set(joined.files)) == 3
    into = torch.empty_like(whole[index], dtype=dtype)
    joined.read(index, into)
    assert torch.equal(into, whole[index].to(dtype))


def test_vectors_and_single_ranks(tmp_path):
    whole = torch.arange(8.0)
    joined = join(parts(tmp_path, whole.chunk(2)), 0)
    into = torch.empty(8)
    joined.read((), into)
    assert torch.equal(into, whole)
    alone = parts(tmp_path, [whole])
    assert join(alone, 0) is alone[0]


@pytest.mark.parametrize("other", [torch.zeros(4, 5), torch.zeros(4, 6, dtype=torch.float16), torch.zeros(4)])
def test_parts_that_do_not_fit(tmp_path, other):
    with pytest.raises(ValueError, match="do not fit"):
        join(parts(tmp_path, [torch.zeros(4, 6), other]), 0)
