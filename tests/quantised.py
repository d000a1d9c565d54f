"""Quantised checkpoints made from plain ones, written plainly from the definition of each format: a code after another,
a bit after another. What they stand for is computed beside, so that a test compares with that.

A quantiser takes a weight `[out, in]` and gives the tensors by the last part of their names, and the floats that they
stand for.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Parts = dict[str, torch.Tensor]
Quantiser = Callable[[torch.Tensor], tuple[Parts, torch.Tensor]]
AWQ_ORDER = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def word(codes: list[int], bits: int) -> int:
    """Codes in one 32-bit word, the first in its lowest bits, as a signed number."""
    total = sum((code & (2**bits - 1)) << (bits * place) for place, code in enumerate(codes))
    return total - 2**32 if total >= 2**31 else total


def pack_rows(codes: list[list[int]], bits: int, order: list[int] | None = None) -> torch.Tensor:
    """`[rows, n]` codes → `[rows, n * bits / 32]` int32; `order`: which of a word's codes comes first, and so on."""
    each = 32 // bits
    rows = []
    for row in codes:
        row = row + [0] * (-len(row) % each)
        words = [row[i : i + each] for i in range(0, len(row), each)]
        rows.append([word([w[i] for i in order] if order else w, bits) for w in words])
    return torch.tensor(rows, dtype=torch.int32)


def turned(rows: list[list[int]]) -> list[list[int]]:
    """The transpose."""
    return [list(column) for column in zip(*rows, strict=True)]


def integers(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool, group_of: list[int] | None = None, dtype=torch.float16
) -> tuple[list[list[int]], torch.Tensor, list[list[int]], torch.Tensor]:
    """Unsigned codes `[out, in]`, scales and zeros `[out, groups]`, and the floats that they stand for."""
    weight = weight.double()
    rows, cols = weight.shape
    group = group or cols
    group_of = group_of or [i // group for i in range(cols)]
    count, top = max(group_of) + 1, 2**bits - 1
    scales = torch.zeros(rows, count, dtype=dtype)
    codes, zeros = [[0] * cols for _ in range(rows)], [[0] * count for _ in range(rows)]
    floats = [[0.0] * cols for _ in range(rows)]
    for g in range(count):
        inside = [i for i in range(cols) if group_of[i] == g]
        values = weight[:, inside]
        low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        scales[:, g] = ((high - low) / top).clamp(min=1e-6).to(dtype)
        for r, (row, scale, least) in enumerate(zip(values.tolist(), scales[:, g].tolist(), low.tolist(), strict=True)):
            zero = 2 ** (bits - 1) if symmetric else min(max(round(-least / scale), 0), top)
            zeros[r][g] = zero
            for i, value in zip(inside, row, strict=True):
                codes[r][i] = min(max(round(value / scale) + zero, 0), top)
                floats[r][i] = (codes[r][i] - zero) * scale
    return codes, scales, zeros, torch.tensor(floats)


def gptq(bits=4, group=32, symmetric=True, order=None, second=False, index=True) -> Quantiser:
    """`order`: seed of the groups that inputs belong to; `second`: the second version of the format."""

    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        cols = weight.shape[1]
        group_of = [i // (group or cols) for i in range(cols)]
        if order is not None:
            generator = torch.Generator().manual_seed(order)
            group_of = [group_of[i] for i in torch.randperm(cols, generator=generator).tolist()]
        codes, scales, zeros, floats = integers(weight, bits, group, symmetric, group_of)
        stored = zeros if second else [[zero - 1 for zero in row] for row in zeros]
        parts = {
            "qweight": pack_rows(codes, bits).T.contiguous(),  # a word is codes of consecutive inputs
            "qzeros": pack_rows(turned(stored), bits),
            "scales": scales.T.contiguous(),
        }
        if index:
            parts["g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        return parts, floats

    return quantise


def awq(bits=4, group=32) -> Quantiser:
    """The packing that kernels of matrix products read."""

    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        codes, scales, zeros, floats = integers(weight, bits, group, symmetric=False)
        return {
            "qweight": pack_rows(turned(codes), bits, AWQ_ORDER[bits]),
            "qzeros": pack_rows(turned(zeros), bits, AWQ_ORDER[bits]),
            "scales": scales.T.contiguous(),
        }, floats

    return quantise


def compressed(bits=4, group=32, symmetric=True, packed=True, order=None) -> Quantiser:
    """compressed-tensors of integers; `packed`: pack-quantized, else int-quantized."""

    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        cols, half = weight.shape[1], 2 ** (bits - 1)
        group_of = None
        if order is not None:
            generator = torch.Generator().manual_seed(order)
            group_of = [i // group for i in torch.randperm(cols, generator=generator).tolist()]
        codes, scales, zeros, floats = integers(weight, bits, group, symmetric, group_of, torch.bfloat16)
        parts = {"weight_scale": scales}
        if packed:
            parts["weight_packed"] = pack_rows(codes, bits)
            parts["weight_shape"] = torch.tensor(weight.shape)
        else:
            parts["weight"] = torch.tensor([[code - half for code in row] for row in codes], dtype=torch.int8)
        if not symmetric and packed:
            parts["weight_zero_point"] = pack_rows(turned(zeros), bits).T.contiguous()
        elif not symmetric:
            parts["weight_zero_point"] = torch.tensor([[z - half for z in row] for row in zeros], dtype=torch.int8)
        if group_of is not None:
            parts["weight_g_idx"] = torch.tensor(group_of, dtype=torch.int32)
        return parts, floats

    return quantise


def fp8(block=(128, 128), dtype=torch.float8_e4m3fn, scale="weight_scale_inv", scales=torch.float32) -> Quantiser:
    """FP8 in blocks; of sizes 0 for all rows or columns."""

    def quantise(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
        rows, cols = weight.shape[-2:]
        height, width = block[0] or rows, block[1] or cols
        stored = torch.zeros(weight.shape, dtype=dtype)
        grid = torch.zeros(-(-rows // height), -(-cols // width))
        floats = torch.zeros(weight.shape)
        for r in range(grid.shape[0]):
            for c in range(grid.shape[1]):
                place = (slice(r * height, (r + 1) * height), slice(c * width, (c + 1) * width))
                grid[r, c] = (weight[place].abs().max() / torch.finfo(dtype).max).to(scales).float()
                if scales == torch.float8_e8m0fnu:
                    grid[r, c] = 2.0 ** float(torch.ceil(torch.log2(weight[place].abs().max() / 448)))
                stored[place] = (weight[place] / grid[r, c]).to(dtype)
                floats[place] = stored[place].float() * grid[r, c]
        return {"weight": stored, scale: grid.to(scales)}, floats

    return quantise


def mxfp4(weight: torch.Tensor) -> tuple[Parts, torch.Tensor]:
    """`[out, in]` → blocks `[out, in / 32, 16]` and scales `[out, in / 32]`."""
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    blocks, scales, floats = [], [], []
    for row in weight.reshape(len(weight), -1, 32).tolist():
        for values in row:
            exponent = max(-127, math.frexp(max(map(abs, values)))[1] - 3)
            nearest = [min(range(8), key=lambda k: abs(numbers[k] * 2.0**exponent - abs(v))) for v in values]
            codes = [code | (8 if value < 0 else 0) for code, value in zip(nearest, values, strict=True)]
            blocks.append([low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True)])
            scales.append(exponent + 127)
            floats.append([numbers[c & 7] * 2.0**exponent * (-1 if c & 8 else 1) for c in codes])
    shape = (len(weight), -1)
    return {
        "blocks": torch.tensor(blocks, dtype=torch.uint8).view(*shape, 16),
        "scales": torch.tensor(scales, dtype=torch.uint8).view(shape),
    }, torch.tensor(floats).view(shape)


def rewrite(
    folder: str | Path, to: Path, quantise: Quantiser, config: dict[str, Any], among: Callable[[str], bool]
) -> Path:
    """Two checkpoints of the one in `folder`: `to/quantised`, and `to/plain` with the floats that it stands for.

    Args:
        among: whether the weight of this name is quantised.
    """
    stored: Parts = {}
    floats: Parts = {}
    for name, tensor in load_file(Path(folder) / "model.safetensors").items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and among(name):
            parts, floats[name] = quantise(tensor)
            stored |= {f"{module}.{part}": value for part, value in parts.items()}
        else:
            stored[name] = floats[name] = tensor
    save(folder, to / "plain", floats, {})
    return save(folder, to / "quantised", stored, {"quantization_config": config})


def save(folder: str | Path, to: Path, tensors: Parts, change: dict[str, Any]) -> Path:
    """A checkpoint with other tensors and a changed config."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / "model.safetensors")
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **change}))
    return to
