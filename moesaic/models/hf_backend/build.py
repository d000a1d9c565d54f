"""A model ready to run, of the two kinds that the allow-list knows."""

import torch

from moesaic.core.config import ModelConfig
from moesaic.core.errors import UnsupportedError
from moesaic.models.hf_backend.allowed import Allowed
from moesaic.models.hf_backend.facts import read_facts
from moesaic.models.hf_backend.loading import load
from moesaic.models.hf_backend.packed import PackedModel
from moesaic.models.hf_backend.request import RequestModel

ForeignModels = PackedModel | RequestModel


def build(
    config: ModelConfig, entry: Allowed, device: torch.device, block_size: int, kv_dtype: torch.dtype
) -> ForeignModels:
    """The model of an allowed architecture, its weights loaded. Raises ConfigError or CheckpointError."""
    if config.quantization not in ("auto", "none") or config.quantization_config:
        raise UnsupportedError(
            f"{entry.architecture} runs through transformers' own code, whose weights are not quantised: leave "
            "--quantization and --quantization-config out"
        )
    if entry.mode == "request" and kv_dtype is not getattr(torch, config.dtype):
        raise UnsupportedError(f"{entry.architecture} keeps its cache in the model's dtype: leave --kv-cache-dtype out")
    spec = read_facts(config.path, entry)
    model = load(config, spec, device)
    if entry.mode == "packed":
        return PackedModel(model, spec, config.moe_backend, kv_dtype, block_size)
    return RequestModel(model, spec, config.moe_backend)
