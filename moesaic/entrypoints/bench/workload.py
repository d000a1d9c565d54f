"""What benchmarks feed a model, and what they call it. Torch-free: a driver of other processes uses it too."""

import random
from collections.abc import Iterable


def random_prompts(lengths: Iterable[int], vocab_size: int, seed: int) -> list[list[int]]:
    """Token ids drawn uniformly from the vocabulary: the same ones for the same arguments."""
    draw = random.Random(seed)
    return [draw.choices(range(vocab_size), k=length) for length in lengths]


def spread_lengths(count: int, length: int, spread: float, seed: int) -> list[int]:
    """`count` lengths drawn from `length` less and more a share of `spread`, at least 1."""
    draw = random.Random(seed)
    return [max(1, round(length * (1 + draw.uniform(-spread, spread)))) for _ in range(count)]


def model_case(model: str, dtype: str) -> str:
    """The model's part of a case: its name, without the folder that it lies in, and its dtype."""
    return f"{model.rstrip('/').rpartition('/')[2]} {dtype}"
