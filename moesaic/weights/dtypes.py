"""Names of dtypes, as safetensors spells them, and torch's."""

import torch

from moesaic.weights.tensors import FLOATS, TORCH_NAMES

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in TORCH_NAMES.items()}
FLOAT_DTYPES = {name: DTYPES[name] for name in FLOATS}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
