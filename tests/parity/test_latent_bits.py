"""Latent attention computes a token's bits alone as in a batch and in any chunks."""

import pytest
import torch

from moesaic.kernels.cpu.library import Unavailable, supported_isas
from tests.parity.driver import Driver, load
from tests.parity.test_families import random_streams
from tests.tiny_models import make_tiny


@pytest.mark.parametrize("family", ["deepseek_v3", "mistral4", "longcat_flash", "deepseek_v32", "glm_moe_dsa"])
def test_no_chunking_changes_a_bit(family, tmp_path):
    try:
        supported_isas()
    except Unavailable as reason:
        pytest.skip(str(reason))
    make_tiny(family, tmp_path)
    model = load(tmp_path, backend="cpu")
    streams = random_streams()
    whole = Driver(model).run(streams, [1000])
    for chunks in ([1], [7, 3, 1]):
        run = Driver(model).run(streams, chunks)
        assert all(torch.equal(run[i], whole[i]) for i in streams)
    for i, tokens in streams.items():
        assert torch.equal(Driver(model).run({i: tokens}, [5])[i], whole[i])
