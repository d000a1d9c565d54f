"""EngineArgs: what a user may say about an engine. Names follow vLLM; each default lives here, beside its help."""

from dataclasses import dataclass, field
from typing import Any, get_args

from moesaic.core.config import LoadFormat
from moesaic.core.strict import strict_kwargs

EMBEDDED_MODEL = "moe-model"


def arg(default: Any, help: str, choices: tuple[str, ...] | None = None, metavar: str | None = None) -> Any:
    """A field with what the command line needs to make a flag of it."""
    metadata = {"help": help, "choices": choices, "metavar": metavar}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@strict_kwargs
@dataclass(frozen=True, kw_only=True)
class EngineArgs:
    """Arguments of an engine, as `LLM(...)`, `LLMEngine.from_engine_args` and the command line take them.

    An unknown argument raises ConfigError with the nearest name. `resolve()` (engine/resolve.py) checks the
    values, replaces every "auto" and None, and logs what it chose.
    """

    model: str = arg(EMBEDDED_MODEL, "folder, Hugging Face id, or moe-model (embedded, works offline)")
    tokenizer: str | None = arg(None, "folder or id of the tokenizer, when it is not the model's")
    skip_tokenizer_init: bool = arg(False, "take and give token ids only; the checkpoint needs no tokenizer")
    revision: str | None = arg(None, "branch, tag or commit of a Hugging Face id")
    download_dir: str | None = arg(None, "where a Hugging Face id is kept")
    served_model_name: list[str] = arg([], "name(s) that clients may use instead of --model; repeatable")
    chat_template: str | None = arg(None, "file of a Jinja chat template, instead of the tokenizer's own")
    load_format: str = arg(
        "auto",
        "what weights are kept as (docs/formats.md); dummy makes seeded random ones",
        choices=get_args(LoadFormat),
    )
    verify_weights: bool = arg(
        False,
        "before anything is loaded, see that every file is what the manifest of `moesaic convert` says, by its SHA-256",
    )
    dtype: str = arg(
        "auto",
        "of weights and KV; auto takes the checkpoint's, or float32 on a CPU where plain torch computes",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    device: str = arg("auto", "where the model runs; auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    moe_routing_func: list[str] = arg(
        [],
        "function that changes how experts are chosen (docs/steer.md): module:function, the current folder counts, or "
        "the name of an installed one; repeatable, each is given what the one before it made",
        metavar="MODULE:FUNCTION",
    )
    simulate_routing: str | None = arg(
        None,
        "for tests of capacity: experts are drawn by lot, and what the model says means nothing; uniform, "
        "zipf:EXPONENT (a few experts get most tokens), or replay:FILE with recorded routes",
        metavar="uniform|zipf:S|replay:FILE",
    )
    moe_backend: str = arg(
        "auto",
        "who computes: cpu for C++ kernels, reference for plain torch; auto takes the best that can, others must",
        choices=("auto", "cpu", "reference"),
    )
    model_impl: str = arg(
        "auto",
        "whose code computes the model: native for ours, transformers for its own with our attention, experts and "
        "scheduler; auto takes native where it knows the architecture (`moesaic models` lists both)",
        choices=("auto", "native", "transformers"),
    )
    arch: str | None = arg(
        None,
        "file with the model's architecture (`spec` and `RULES`), such as `moesaic adapt` drafts; it counts whatever "
        "the checkpoint names",
        metavar="FILE",
    )
    trust_remote_code: bool = arg(False, "run the code that a checkpoint's auto_map names, where nothing else can")
    quantization: str = arg(
        "auto",
        "how weights are kept: auto as the checkpoint has them, its own codes where it is quantised in a way that the "
        "kernels know; none as floats; w8a16 and w4a16 (8 and 4 bits, 16-bit activations), w8a8 (8-bit activations "
        "too): embedding, router and norms then stay as they are, and the LM head has 8 bits",
        choices=("auto", "none", "w8a16", "w4a16", "w8a8"),
    )
    quantization_group_size: int = arg(128, "inputs that share a scale: 32, 64, 128, or 0 for a whole row", metavar="N")
    quantization_config: str | None = arg(
        None,
        "other formats for parts of the model, as pattern=format by commas or as a JSON object; the last that fits "
        "wins: layers.*.mlp.experts=w4a16:32,layers.0-1=w8a16,layers.*.attention=none,lm_head=none; behind a format "
        "may stand :group-size, and :symmetric or :offsets",
        metavar="PATTERN=FORMAT,...",
    )
    pack_cache: str = arg(
        "auto",
        "folder where packed weights are kept, so that the next start reads them as they are; auto takes "
        "~/.cache/moesaic (or MOESAIC_CACHE) where packing takes time: for quantised models; off keeps none",
        metavar="auto|off|DIR",
    )
    enable_moe_block_align: bool = arg(
        False, "take an expert's rows in blocks of one size, 64 or the next flag's; the results are the same"
    )
    moe_block_size: int | None = arg(
        None, "rows of an expert in a block, a power of 2 up to 1024; else MOESAIC_MOE_BLOCK_SIZE, else as kernels like"
    )
    moe_top_k: int | None = arg(
        None,
        "experts a token goes to in every layer, instead of the model's own; a request's own top_k wins",
        metavar="K",
    )
    enforce_eager: bool = arg(False, "record no decode step to replay it; the results are the same, slower")
    diagnose: bool = arg(
        False,
        "look at the output of every operation, so that where logits are not finite the first layer, expert and "
        "operation is named, with its cause; slower, and weights that are not finite load",
    )
    moe_routing_profile: list[str] = arg(
        [], "file with a routing profile (docs/steer.md), or a folder of them; repeatable", metavar="FILE"
    )
    moe_active_profile: str | None = arg(
        None,
        "the profile of requests that name none; by default the one of --moe-routing-profile, if that is just one "
        "file; '' for none",
        metavar="NAME",
    )
    max_model_len: int | None = arg(None, "tokens of one sequence, prompt and output; the model's own by default")
    max_num_seqs: int = arg(256, "sequences that run at once")
    max_num_batched_tokens: int = arg(2048, "token budget of one step; longer prompts are computed in chunks")
    block_size: int = arg(16, "tokens a KV-cache block")
    enable_prefix_caching: bool = arg(True, "reuse the KV of a prompt's beginning that was computed before")
    state_checkpoint_interval: int | None = arg(
        None,
        "tokens between the copies of recurrent state that prefix caching keeps, a multiple of --block-size; 512, or "
        "the next multiple, by default; of no effect on models without recurrent layers",
        metavar="N",
    )
    kv_cache_dtype: str = arg(
        "auto",
        "what keys and values are kept in; auto takes --dtype's, int8 is codes with a scale for each token and head",
        choices=("auto", "float32", "bfloat16", "float16", "int8"),
    )
    kv_cache_memory: str | int | None = arg(
        None, "memory for KV and recurrent state, as 4GiB or bytes; else by the next flag", metavar="SIZE"
    )
    gpu_memory_utilization: float | None = arg(
        None,
        "share of the device's memory (the machine's, on a CPU) for weights and KV; 0.9 on a GPU, on a CPU 0.5, or 0.8 "
        "where the weights alone take more than 0.4",
    )
    tensor_parallel_size: int = arg(1, "only 1 yet")
    threads: int | None = arg(None, "CPU threads of the model; the physical cores by default, one for a tiny model")
    seed: int = arg(0, "of dummy weights, and of requests that bring none")
