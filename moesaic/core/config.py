"""The engine's resolved configuration: frozen, typed, nothing left on "auto" (EngineArgs resolves).
Torch-free, so that a process which only talks to the engine can hold it."""

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16", "float16"]
KVCacheDType = Literal["float32", "bfloat16", "float16", "int8"]
LoadFormat = Literal[
    "auto", "packed", "safetensors", "bin", "directories", "hdf5", "deepspeed", "megatron", "gguf", "dummy"
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights are read.

    Attributes:
        path: folder of the checkpoint.
        name: what clients call it.
        dtype: of weights and activations.
        max_model_len: tokens of one sequence, prompt and output together.
        load_format: where weights come from; "dummy" makes seeded random ones.
        moe_backend: who computes; "auto" for the best that can.
        quantization: how weights are kept: "auto" as the checkpoint has them, "none" as floats, or "w8a16", "w4a16",
            "w8a8".
        quantization_group_size: inputs that share a scale; 0 for a whole row.
        quantization_config: exceptions, `pattern=format` by commas; "" for none (weights/quantization.py).
        pack_cache: folder where packed weights are kept for the next start, or None.
        force_pack_cache: keep them even where packing them anew takes no time to speak of.
        moe_block_size: the most rows of an expert in one block of work; 0 leaves it to the kernels.
        model_impl: whose code computes: "native", "transformers", or "auto" for the first that can.
        trust_remote_code: the checkpoint's own code may run.
        arch: file with the architecture; None for the one that the checkpoint names.
        allow_nonfinite: weights that are NaN or infinite load.
        moe_top_k: experts a token goes to, instead of the model's own; None for those.
        verify_weights: every file must be what the checkpoint's manifest says.
    """

    path: str
    name: str
    dtype: DType
    max_model_len: int
    load_format: LoadFormat
    seed: int
    moe_backend: str = "auto"
    quantization: str = "auto"
    quantization_group_size: int = 128
    quantization_config: str = ""
    pack_cache: str | None = None
    force_pack_cache: bool = False
    moe_block_size: int = 0
    model_impl: str = "auto"
    trust_remote_code: bool = False
    arch: str | None = None
    allow_nonfinite: bool = False
    verify_weights: bool = False
    moe_top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged cache.

    Attributes:
        block_size: tokens a block.
        memory: bytes for KV, or None to size it by `memory_utilization`.
        memory_utilization: share of the device's memory that weights and KV may take together; None to choose it when
            the weights are there.
        dtype: what keys and values are kept in; None for the model's.
        state_checkpoint_interval: tokens between copies of recurrent state, a multiple of block_size.
    """

    block_size: int
    memory: int | None
    memory_utilization: float | None
    enable_prefix_caching: bool
    dtype: KVCacheDType | None = None
    state_checkpoint_interval: int = 512


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """The budget of a step: tokens, and sequences that run at once.

    Attributes:
        whole_prompts: a sequence's tokens are computed in one step when it starts, for models that cannot go on in the
            middle of a prompt; nothing is shared among sequences then.
        share_prompts: a sequence may begin on what another one computed of the same prompt.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    whole_prompts: bool = False
    share_prompts: bool = True


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything an engine needs to start.

    Attributes:
        enforce_eager: record no step.
        diagnose: look at what every operation gives.
    """

    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    device: str
    threads: int | None
    enforce_eager: bool = False
    diagnose: bool = False
