"""Tiny configs of every supported family, by group: what differs from `COMMON`, and variants of it.

A group is a module with `CONFIGS` (family -> keys of transformers' config class), `VARIANTS` (name -> family, keys)
and, where there are such, `STORED_LESS_ONE`: families whose norms' weights are stored as their difference from 1;
`MULTIMODAL`: families whose keys are those of a language model within one that sees or hears, and the keys beside it
("part": of which part of the model).
"""

from itertools import chain
from typing import Any

from tests.families import dense, first, gated, grouped, hybrid, latent, multimodal, recurrent

GROUPS = (dense, gated, grouped, hybrid, latent, multimodal, recurrent)  # beside the first five

FAMILIES = tuple(first.CONFIGS)
MORE_FAMILIES = tuple(sorted(chain.from_iterable(group.CONFIGS for group in GROUPS)))
CONFIGS: dict[str, dict[str, Any]] = {f: keys for group in (first, *GROUPS) for f, keys in group.CONFIGS.items()}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {n: v for group in GROUPS for n, v in group.VARIANTS.items()}
MULTIMODAL: dict[str, dict[str, Any]] = {
    family: keys for group in GROUPS for family, keys in getattr(group, "MULTIMODAL", {}).items()
}
STORED_LESS_ONE = tuple(chain.from_iterable(getattr(group, "STORED_LESS_ONE", ()) for group in GROUPS))
