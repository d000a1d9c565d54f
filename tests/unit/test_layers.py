"""Small contracts of the layers: caches, groups, views."""

import resource
import subprocess
import sys

import pytest
import torch

from moesaic.core.errors import UnsupportedError
from moesaic.distributed.groups import ProcessGroup
from moesaic.layers.base import BuildContext
from moesaic.layers.kv_cache import KVCacheSpec
from moesaic.layers.linear import MergedColumnParallelLinear

CONTEXT = BuildContext(torch.device("cpu"), torch.float32)


def test_more_than_one_rank_is_refused():
    assert ProcessGroup().size == 1
    with pytest.raises(UnsupportedError, match="only one rank"):
        ProcessGroup(rank=1, size=2)


def test_parts_of_a_merged_projection_are_rows_of_one_tensor():
    linear = MergedColumnParallelLinear(3, {"q": 4, "k": 2}, bias=True, ctx=CONTEXT)
    for view, number in zip(dict(linear.named_views()).values(), range(4), strict=True):
        view.fill_(number)
    assert linear.weight[:, 0].tolist() == [0, 0, 0, 0, 2, 2]
    assert linear.bias.tolist() == [1, 1, 1, 1, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_is_what_its_spec_says(dtype):
    spec = KVCacheSpec(num_kv_heads=2, head_dim=8, dtype=dtype)
    cache = spec.allocate(num_blocks=5, block_size=4, device="cpu")
    assert cache.key.shape == (5, 4, 2, 8) and cache.key.dtype == dtype and cache.block_size == 4
    assert not cache.value.any()
    cache.key[3, 1] = 7
    assert cache.key.sum() == 7 * 16
    assert 5 * spec.bytes_per_block(4) == cache.key.nbytes + cache.value.nbytes


def test_an_untouched_cache_takes_no_memory():
    code = (
        "import resource, torch; from moesaic.layers.kv_cache import KVCacheSpec\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); cache = KVCacheSpec(8, 128, torch.bfloat16).allocate(16384, 16, 'cpu')\n"
        "print(cache.key.nbytes, (peak() - before) * 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    size, grown = map(int, out.split())
    assert size == 1 << 29 and grown < size // 10, resource.getpagesize()
