"""From a checkpoint's folder to what it computes, and to a model ready to run. Torch is imported when needed."""

import os
from typing import TYPE_CHECKING, Any

from moesaic.core.config import ModelConfig
from moesaic.models.config_reader import ConfigReader, eos_token_ids, read_config
from moesaic.models.registry import Architecture, ModelRegistry
from moesaic.models.spec import ModelSpec

if TYPE_CHECKING:
    from moesaic.models.decoder import Decoder

__all__ = ["eos_token_ids", "load_model", "read_config", "read_spec", "spec_of"]


def read_spec(path: str) -> tuple[Architecture, ModelSpec]:
    """What the checkpoint in folder `path` computes. Raises ConfigError or CheckpointError."""
    return spec_of(read_config(path), os.path.join(path, "config.json"))


def spec_of(config: dict[str, Any], where: str = "config.json") -> tuple[Architecture, ModelSpec]:
    """What a model with this config computes; every key is accounted for. Raises ConfigError."""
    architecture = ModelRegistry.resolve(config)
    reader = ConfigReader(config, where)
    spec = architecture.spec(reader)
    reader.finish()
    return architecture, spec


def load_model(config: ModelConfig, device: str, block_size: int = 16, progress: bool = True) -> "Decoder":
    """The model, its parameters filled. Raises ConfigError or CheckpointError.

    Args:
        block_size: of the cache that it will be run on.
    """
    import torch

    from moesaic.layers.base import BuildContext
    from moesaic.models.backends import choose_backends
    from moesaic.models.decoder import Decoder
    from moesaic.weights.loader import fill_dummy, load_weights
    from moesaic.weights.sources import open_source

    architecture, spec = read_spec(config.path)
    source = None if config.load_format == "dummy" else open_source(config.path, config.load_format)
    where, dtype = torch.device(device), getattr(torch, config.dtype)
    backends = choose_backends(spec, where, dtype, block_size, config.moe_backend)
    model = Decoder(spec, BuildContext(where, dtype, backends=backends))
    parameters = dict(model.named_views())
    if source is None:
        fill_dummy(parameters, config.seed)
    else:
        load_weights(parameters, architecture.rules, source, config.path, progress)
    return model.eval()
