"""The tokens that models are compared on: seeded ones of several lengths, or a user's lines."""

import json
import os
from typing import Any

import torch

from moesaic.core.errors import ConfigError

LENGTHS = (40, 23, 11, 6, 4, 3, 2, 1)  # short ones tell at which token a difference begins
GREEDY_OF = (1, 3)  # these are continued
GREEDY_TOKENS = 8


def seeded(config: dict[str, Any], vocab_size: int, longest: int) -> list[list[int]]:
    """Random tokens, less those that the config gives a meaning."""
    special = _token_ids(config)
    usable = torch.tensor([i for i in range(vocab_size) if i not in special] or [0])
    generator = torch.Generator().manual_seed(20)
    lengths = [max(1, min(n, longest - GREEDY_TOKENS)) for n in LENGTHS]
    return [usable[torch.randint(len(usable), (n,), generator=generator)].tolist() for n in lengths]


def _token_ids(config: dict[str, Any]) -> set[int]:
    """All numbers under keys such as `image_token_id`, in the config and those in it."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, dict):
            found |= _token_ids(value)
        elif key.endswith(("token_id", "token_index")):
            found |= {i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)}
    return found


def from_file(file: str, path: str, vocab_size: int, longest: int) -> list[list[int]]:
    """A user's prompts: each line is text, or a JSON array of token ids. Raises ConfigError naming the line."""
    if not os.path.isfile(file):
        raise ConfigError(f"--prompts {file}: there is no such file")
    try:
        with open(file, encoding="utf-8") as f:
            lines = [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompts {file} cannot be read: {error}") from error
    if not lines:
        raise ConfigError(f"--prompts {file} holds no prompts")
    return [_tokens(line, i, file, path, vocab_size)[: longest - GREEDY_TOKENS] for i, line in enumerate(lines, 1)]


def _tokens(line: str, number: int, file: str, path: str, vocab_size: int) -> list[int]:
    if not line.startswith("["):
        from moesaic.engine.tokenizer import Tokenizer

        return Tokenizer(path).encode(line)
    try:
        ids = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--prompts {file}, line {number}: {error}") from error
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise ConfigError(f"--prompts {file}, line {number}: token ids must be whole numbers below {vocab_size}")
    return ids
