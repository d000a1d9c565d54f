"""The public raw operations, in C++ and in torch, against definitions written out in plain Python."""

import os
import random
import subprocess
import sys

import pytest
import torch

import moesaic
from moesaic import ops
from moesaic.kernels.cpu.calls import Kernel
from tests.conftest import ISAS


@pytest.fixture(params=["torch", *ISAS])
def path(request, monkeypatch):
    """Which implementation serves: torch, or the kernels of an instruction set."""
    if request.param == "torch":
        monkeypatch.setattr(ops, "_compiled", lambda *tensors: False)
        yield request.param
    else:
        monkeypatch.setenv("MOESAIC_ISA", request.param)
        Kernel.forget()
        yield request.param
        Kernel.forget()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- grouped_topk ----------------------------------------------------------------------------------------------------


def plain_grouped_topk(scores, biased, n_group, topk_group, topk, renormalize, factor):
    """One token in lists of floats: weights, ids."""
    size = len(scores) // n_group
    groups = [range(g * size, (g + 1) * size) for g in range(n_group)]
    worth = [sum(sorted((biased[e] for e in group), reverse=True)[:2]) for group in groups]
    best = sorted(range(n_group), key=lambda g: (-worth[g], g))[:topk_group]
    ids = sorted((e for g in best for e in groups[g]), key=lambda e: (-biased[e], e))[:topk]
    weights = [scores[e] for e in ids]
    total = sum(weights) + 1e-20 if renormalize else 1.0
    return [w / total * factor for w in weights], ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "experts, n_group, topk_group, topk", [(16, 4, 2, 5), (256, 8, 4, 8), (9, 3, 3, 9), (6, 6, 2, 2), (8, 1, 1, 3)]
)
@pytest.mark.parametrize("renormalize", [False, True])
def test_grouped_topk(path, dtype, experts, n_group, topk_group, topk, renormalize):
    scores = rand(33, experts).sigmoid().to(dtype)
    biased = (scores.float() + rand(experts, seed=1) * 0.1).to(dtype)
    weights, ids = ops.grouped_topk(scores, biased, n_group, topk_group, topk, renormalize, 2.5)
    assert weights.dtype == torch.float32 and ids.dtype == torch.int32 and ids.shape == weights.shape == (33, topk)
    for t in range(33):
        wanted, wanted_ids = plain_grouped_topk(
            scores[t].tolist(), biased[t].tolist(), n_group, topk_group, topk, renormalize, 2.5
        )
        assert ids[t].tolist() == wanted_ids
        assert weights[t].tolist() == pytest.approx(wanted, rel=1e-5)


def test_grouped_topk_ties_nan_and_no_tokens(path):
    flat = torch.full((2, 12), 0.5)
    assert ops.grouped_topk(flat, flat, 3, 2, 4, True, 1.0)[1].tolist() == [[0, 1, 2, 3]] * 2
    flat[0, 7] = float("nan")
    ids = ops.grouped_topk(flat, flat, 3, 2, 4, True, 1.0)[1]
    assert ids[0].tolist()[0] == 7 and len(set(ids[0].tolist())) == 4
    assert ops.grouped_topk(flat[:0], flat[:0], 3, 2, 4, True, 1.0)[1].shape == (0, 4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_group": 5}, "12 experts cannot be cut into n_group=5"),
        ({"n_group": 0}, "n_group must be a whole number of at least 1"),
        ({"topk_group": 4}, "topk_group is 4, but there are 3 groups"),
        ({"topk": 9}, "topk is 9, but 2 of 3 groups hold 8"),
        ({"scores": torch.zeros(2, 11)}, "differ"),
        ({"scores": torch.zeros(2, 12, dtype=torch.int32)}, "scores must be float32 or float16 or bfloat16"),
        ({"scores": torch.zeros(12)}, "scores must have 2 dimensions"),
    ],
)
def test_grouped_topk_refuses(change, message):
    arguments = {"scores": torch.zeros(2, 12), "n_group": 3, "topk_group": 2, "topk": 4} | change
    with pytest.raises(ValueError, match=message):
        ops.grouped_topk(scores_with_bias=torch.zeros(2, 12), renormalize=True, routed_scaling_factor=1.0, **arguments)


# ---- moe_align_block_size --------------------------------------------------------------------------------------------


def outputs_for(num_choices, experts, block_size):
    most = num_choices + experts * (block_size - 1)
    return (
        torch.full((most,), -7, dtype=torch.int32),
        torch.full((-(-most // block_size),), -7, dtype=torch.int32),
        torch.full((1,), -7, dtype=torch.int32),
    )


@pytest.mark.parametrize("tokens, k, experts", [(0, 2, 4), (1, 1, 1), (4, 3, 5), (100, 2, 7), (33, 8, 64)])
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_align(path, tokens, k, experts, block_size, dtype):
    choices = random.Random(tokens)
    ids = [[choices.randrange(experts) for _ in range(k)] for _ in range(tokens)]
    places, blocks = [], []
    for e in range(experts):
        mine = [i for i in range(tokens * k) if ids[i // k][i % k] == e]
        mine += [tokens * k] * (-len(mine) % block_size)
        places += mine
        blocks += [e] * (len(mine) // block_size)
    sorted_ids, expert_ids, padded = outputs_for(tokens * k, experts, block_size)
    topk_ids = torch.tensor(ids, dtype=dtype).view(tokens, k)
    ops.moe_align_block_size(topk_ids, experts, block_size, sorted_ids, expert_ids, padded)
    assert padded.tolist() == [len(places)]
    assert sorted_ids.tolist() == places + [tokens * k] * (len(sorted_ids) - len(places))
    assert expert_ids.tolist() == blocks + [0] * (len(expert_ids) - len(blocks))


def test_align_as_other_engines_document_it(path):
    ids = torch.tensor([[2, 3, 4], [1, 2, 4], [1, 3, 4], [1, 2, 3]])
    sorted_ids, expert_ids, padded = outputs_for(12, 5, 4)
    ops.moe_align_block_size(ids, 5, 4, sorted_ids, expert_ids, padded)
    assert sorted_ids[:16].tolist() == [3, 6, 9, 12, 0, 4, 10, 12, 1, 7, 11, 12, 2, 5, 8, 12]
    assert expert_ids[:4].tolist() == [1, 2, 3, 4] and padded.item() == 16


@pytest.mark.parametrize(
    "change, message",
    [
        ({"topk_ids": torch.tensor([[0, 4]])}, r"topk_ids must be in \[0, 4\), got 0..4"),
        ({"topk_ids": torch.tensor([[-1, 2]])}, "got -1..2"),
        ({"topk_ids": torch.zeros(1, 2)}, "topk_ids must be int32 or int64, got"),
        ({"sorted_token_ids": torch.zeros(15, dtype=torch.int32)}, "sorted_token_ids has 15 elements, .* need 16"),
        ({"sorted_token_ids": torch.zeros(64, dtype=torch.int64)}, "sorted_token_ids must be int32"),
        ({"sorted_token_ids": torch.zeros(64, dtype=torch.int32)[::2]}, "must be contiguous"),
        ({"experts_ids": torch.zeros(1, dtype=torch.int32)}, "experts_ids has 1 elements, these choices need 2"),
        ({"num_tokens_post_pad": torch.zeros(2, dtype=torch.int32)}, "num_tokens_post_pad has one element"),
        ({"block_size": 0}, "block_size must be a whole number of at least 1"),
    ],
)
def test_align_refuses_and_writes_nothing(change, message):
    sorted_ids, expert_ids, padded = outputs_for(2, 4, 8)
    arguments = {
        "topk_ids": torch.tensor([[0, 3]]),
        "block_size": 8,
        "sorted_token_ids": sorted_ids,
        "experts_ids": expert_ids,
        "num_tokens_post_pad": padded,
    }
    with pytest.raises(ValueError, match=message):
        ops.moe_align_block_size(num_experts=4, **(arguments | change))
    assert set(sorted_ids.tolist()) | set(expert_ids.tolist()) | set(padded.tolist()) == {-7}


# ---- moe_wna16_gemm --------------------------------------------------------------------------------------------------


class Quantised:
    """Random experts: codes, zeros and scales as one thinks of them, and as the operation takes them."""

    def __init__(self, experts, n, k, group, bits, zeros, dtype):
        generator = torch.Generator().manual_seed(n + k)
        top = 2**bits
        codes = torch.randint(top, (experts, n, k), generator=generator)
        self.scales = (torch.rand(experts, n, k // group, generator=generator) * 0.1).to(dtype)
        offsets = torch.randint(top, self.scales.shape, generator=generator) if zeros else None
        self.weights = torch.empty(experts, n, k, dtype=torch.float64)
        for e in range(experts):
            for o in range(n):
                for i in range(k):
                    zero = int(offsets[e, o, i // group]) if zeros else top // 2
                    self.weights[e, o, i] = (int(codes[e, o, i]) - zero) * float(self.scales[e, o, i // group])
        self.codes = self.pack(codes.to(torch.uint8), bits, 2)
        self.zeros = self.pack(offsets.to(torch.uint8), bits, 1) if zeros else None

    @staticmethod
    def pack(values, bits, dim):
        """Two 4-bit values a byte, the first of them in the low nibble."""
        if bits == 8:
            return values
        pairs = values.movedim(dim, -1).reshape(*values.movedim(dim, -1).shape[:-1], -1, 2)
        return (pairs[..., 0] + 16 * pairs[..., 1]).movedim(-1, dim).contiguous()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "tokens, top_k, block, n, k, group", [(0, 2, 4, 2, 8, 8), (5, 2, 4, 18, 40, 8), (1, 3, 16, 4, 64, 32)]
)
def test_gemm(path, bits, zeros, dtype, tokens, top_k, block, n, k, group):
    experts = 4
    q = Quantised(experts, n, k, group, bits, zeros, dtype)
    x, routing = rand(tokens, k).to(dtype), rand(tokens, top_k, seed=3)
    ids = torch.randint(experts, (tokens, top_k), generator=torch.Generator().manual_seed(5))
    sorted_ids, expert_ids, padded = outputs_for(tokens * top_k, experts, block)
    ops.moe_align_block_size(ids, experts, block, sorted_ids, expert_ids, padded)
    for weights in (None, routing):
        out = torch.full((tokens, top_k, n), float("nan"), dtype=dtype)
        given = ops.moe_wna16_gemm(
            x, out, q.codes, q.scales, q.zeros, weights, sorted_ids, expert_ids, padded, top_k, block, 64, 64, bits
        )
        assert given is out
        for t in range(tokens):
            for j in range(top_k):
                wanted = q.weights[ids[t, j]] @ x[t].double() * (1 if weights is None else float(weights[t, j]))
                torch.testing.assert_close(
                    out[t, j].double(), wanted, rtol=1e-2, atol=1e-4 if dtype is torch.float32 else 2e-2
                )


def test_gemm_leaves_out_blocks_without_an_expert(path):
    q = Quantised(2, 4, 16, 8, 4, False, torch.float32)
    x = rand(4, 16)
    sorted_ids = torch.tensor([0, 1, 2, 3, 9, 9], dtype=torch.int32)
    expert_ids, padded = torch.tensor([1, -1, 0], dtype=torch.int32), torch.tensor([4], dtype=torch.int32)
    out = ops.moe_wna16_gemm(
        x, torch.ones(4, 4), q.codes, q.scales, None, None, sorted_ids, expert_ids, padded, 1, 2, 16, 16, 4
    )
    torch.testing.assert_close(out[:2].double(), x[:2].double() @ q.weights[1].T, rtol=1e-4, atol=1e-4)
    assert not out[2:].any()


def test_gemm_gives_a_row_the_same_bits_in_any_batch(isa):
    q = Quantised(1, 34, 64, 32, 4, True, torch.float32)
    x = rand(9, 64)

    def product(rows):
        count = len(rows)
        sorted_ids, expert_ids, padded = outputs_for(count, 1, 4)
        ops.moe_align_block_size(torch.zeros(count, 1, dtype=torch.int32), 1, 4, sorted_ids, expert_ids, padded)
        out = torch.empty(count, 34)
        return ops.moe_wna16_gemm(
            rows, out, q.codes, q.scales, q.zeros, None, sorted_ids, expert_ids, padded, 1, 4, 32, 32, 4
        )

    assert torch.equal(product(x)[8], product(x[8:])[0])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bit": 3}, "bit must be 4 or 8"),
        ({"BLOCK_SIZE_M": 0}, "BLOCK_SIZE_M must be"),
        ({"top_k": True}, "top_k must be"),
        ({"input": torch.zeros(3, 12)}, "does not hold the 12 inputs"),
        ({"b_qweight": torch.zeros(2, 4, 8)}, "b_qweight must be uint8"),
        ({"b_scales": torch.zeros(2, 4, 3)}, "b_scales must be"),
        ({"b_scales": torch.zeros(2, 4, 16)}, "splits a byte"),
        ({"b_qzeros": torch.zeros(2, 4, 2, dtype=torch.uint8)}, r"b_qzeros must be \[2, 2, 2\]"),
        ({"output": torch.zeros(3, 4)}, r"output must be contiguous \[3, 2, 4\] or \[6, 4\]"),
        ({"output": torch.zeros(4, 6).T}, "output must be contiguous"),
        ({"topk_weights": torch.zeros(5)}, "for 6 choices"),
        ({"expert_ids": torch.tensor([0, 2], dtype=torch.int32)}, r"expert_ids must be in \[-1, 2\)"),
        ({"expert_ids": torch.tensor([0], dtype=torch.int32)}, "expert_ids has 1 elements for 2 blocks"),
        ({"num_tokens_post_pad": torch.tensor([12])}, "sorted_token_ids has 8 elements"),
        ({"num_tokens_post_pad": torch.tensor([6])}, "not a multiple of BLOCK_SIZE_M=4"),
    ],
)
def test_gemm_refuses(change, message):
    arguments = {
        "input": torch.zeros(3, 16),
        "output": torch.zeros(6, 4),
        "b_qweight": torch.zeros(2, 4, 8, dtype=torch.uint8),
        "b_scales": torch.zeros(2, 4, 2),
        "b_qzeros": None,
        "topk_weights": None,
        "sorted_token_ids": torch.zeros(8, dtype=torch.int32),
        "expert_ids": torch.zeros(2, dtype=torch.int32),
        "num_tokens_post_pad": torch.tensor([8], dtype=torch.int32),
        "top_k": 2,
        "BLOCK_SIZE_M": 4,
        "BLOCK_SIZE_N": 16,
        "BLOCK_SIZE_K": 16,
        "bit": 4,
    }
    with pytest.raises(ValueError, match=message):
        ops.moe_wna16_gemm(**(arguments | change))


def test_choices_out_of_range_are_padding(path):
    q = Quantised(1, 4, 16, 8, 8, False, torch.float32)
    sorted_ids = torch.tensor([0, 2**31 - 1, -5, 9], dtype=torch.int32)
    out = ops.moe_wna16_gemm(
        rand(2, 16), torch.ones(2, 4), q.codes, q.scales, None, None, sorted_ids,
        torch.zeros(2, dtype=torch.int32), torch.tensor([4]), 1, 2, 16, 16, 8,
    )  # fmt: skip
    assert out[0].any() and not out[1].any()


def test_ops_are_an_attribute_of_the_package_and_need_no_library(tmp_path):
    assert moesaic.ops is ops
    code = (
        "import torch, moesaic; "
        "print(moesaic.ops.grouped_topk(torch.ones(1, 4), torch.ones(1, 4), 2, 1, 2, True, 1.0)[1].tolist())"
    )
    environment = os.environ | {"MOESAIC_CPU_LIBRARIES": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[[0, 1]]", done.stderr
