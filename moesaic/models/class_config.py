"""What a hand-written model class is told, in the shape of vLLM's config, and what the engine must know of it.
Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moesaic.models.common import rope
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import RopeSpec


class HFConfig:
    """A checkpoint's config.json, its keys as attributes. A key that is absent is an AttributeError.

    The class reads what it computes with; keys that nobody read, ignored or knows to change nothing are refused once
    the model is built.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self._values = dict(values)
        self._reader = ConfigReader(values, path)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("_") or key not in self._values:
            raise AttributeError(f"config.json has no {key!r}")
        self._reader.ignore(key)
        return self._values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or `default` where it is absent."""
        return getattr(self, key, default)

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing of what the class computes."""
        self._reader.ignore(*keys)

    def refuse_unless(self, key: str, *values: Any) -> None:
        """Raise UnsupportedError unless a key is absent or has one of the values that the class implements."""
        self._reader.refuse_unless(key, *values)

    def rope(self, head_size: int, theta: float = 10000.0) -> RopeSpec:
        """The rotary positions that the usual keys describe: rope_parameters, or rope_theta and rope_scaling.

        Args:
            theta: for a config that names none.
        """
        return rope(self._reader, head_size, theta)

    def finish(self) -> None:
        """Raise UnsupportedError for keys that may change what is computed and that nobody read."""
        self._reader.finish()


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The model as the engine runs it; `dtype` is torch's."""

    hf_config: HFConfig
    dtype: Any
    max_model_len: int


@dataclass(frozen=True, kw_only=True)
class CacheSection:
    """The paged cache."""

    block_size: int


@dataclass(frozen=True, kw_only=True)
class ClassConfig:
    """`vllm_config`, as a model class takes it.

    Attributes:
        quant_config: which prefix is kept in which format (`weights.quantization.QuantizationPlan`), or None.
    """

    model_config: ModelSection
    cache_config: CacheSection
    quant_config: Any = None


@dataclass(frozen=True, kw_only=True)
class ClassSpec:
    """What the engine must know of a hand-written model before it is built with memory behind it.

    Attributes:
        asked: what its layers ask of kernels, by family of operations.
        shares_prompts: a sequence may begin on what another one computed, for all that is kept is in the paged cache.
    """

    vocab_size: int
    max_position_embeddings: int
    num_parameters: int
    num_active_parameters: int
    asked: Mapping[str, list[tuple[tuple[str, Any], ...]]] = field(default_factory=dict)
    shares_prompts: bool = True
