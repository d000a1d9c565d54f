"""From EngineArgs, as the user gave them, to an EngineConfig with nothing left open; what was chosen is logged."""

import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast, get_args

from moesaic.core.config import CacheConfig, DType, EngineConfig, KVCacheDType, LoadFormat, ModelConfig, SchedulerConfig
from moesaic.core.errors import ConfigError, UnsupportedError
from moesaic.core.formats import GROUPS
from moesaic.core.log import get_logger
from moesaic.engine.args import EMBEDDED_MODEL, EngineArgs
from moesaic.kernels.cpu.library import describe
from moesaic.models.hf_backend.facts import ForeignSpec
from moesaic.weights.containers.gguf import BEFORE
from moesaic.weights.quantization import parse_exceptions

logger = get_logger(__name__)
EMBEDDED_PATH = Path(__file__).parent.parent / "embedded" / EMBEDDED_MODEL
HUB_SECONDS = 10.0
BLOCK_SIZE_VARIABLE = "MOESAIC_MOE_BLOCK_SIZE"
DEFAULT_MOE_BLOCK, MOST_MOE_BLOCK = 64, 1024
ONE_THREAD_PARAMETERS = 16_000_000
CHECKPOINT_INTERVAL = 512  # tokens
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
UNITS = {
    "": 1,
    "B": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


@dataclass(frozen=True)
class Resolved:
    """An engine's configuration and what a front end needs beside it."""

    config: EngineConfig
    names: list[str]
    explicit_len: bool
    architecture: str


def check_args(args: EngineArgs) -> None:
    """Check every value that needs no model; raises ConfigError naming the argument and its range."""
    for f in fields(args):
        choices = f.metadata["choices"]
        if choices and getattr(args, f.name) not in choices:
            raise ConfigError(f"{f.name} must be one of {', '.join(choices)}, got {getattr(args, f.name)!r}")
    for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "tensor_parallel_size"):
        _at_least_one(name, getattr(args, name))
    for name in ("max_model_len", "threads", "moe_top_k"):
        if getattr(args, name) is not None:
            _at_least_one(name, getattr(args, name))
    if args.tensor_parallel_size > 1:
        raise UnsupportedError(
            f"tensor_parallel_size is {args.tensor_parallel_size}, but parallelism has not landed yet: only 1 works"
        )
    share = args.gpu_memory_utilization
    if share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
        raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {share!r}")
    if not isinstance(args.seed, int):
        raise ConfigError(f"seed must be a whole number, got {args.seed!r}")
    parse_size(args.kv_cache_memory)
    checkpoint_interval(args)
    if isinstance(args.quantization_group_size, bool) or args.quantization_group_size not in GROUPS:
        raise ConfigError(
            f"quantization_group_size must be 32, 64, 128, or 0 for a whole row, got {args.quantization_group_size!r}"
        )
    parse_exceptions(args.quantization_config)
    moe_block_size(args)


def _at_least_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


def checkpoint_interval(args: EngineArgs) -> int:
    """Tokens between copies of recurrent state: as said, else 512 in whole blocks. Raises ConfigError."""
    value, block = args.state_checkpoint_interval, args.block_size
    if value is None:
        return -(-CHECKPOINT_INTERVAL // block) * block
    _at_least_one("state_checkpoint_interval", value)
    if value % block:
        raise ConfigError(f"state_checkpoint_interval must be a multiple of block_size, {block}, got {value}")
    return value


def moe_block_size(args: EngineArgs) -> int:
    """Rows of an expert in a block: what the flag says, else the environment, else 64 where blocks are asked for;
    0 leaves it to the kernels. Raises ConfigError unless it is a power of 2 up to 1024."""
    value: Any = args.moe_block_size
    name, text = "moe_block_size", os.environ.get(BLOCK_SIZE_VARIABLE, "").strip()
    if value is None and text:
        name, value = BLOCK_SIZE_VARIABLE, int(text) if text.isdecimal() else text
    if value is None:
        return DEFAULT_MOE_BLOCK if args.enable_moe_block_align else 0
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not 1 <= value <= MOST_MOE_BLOCK or value & (value - 1):
        raise ConfigError(f"{name} must be a power of 2 from 1 to {MOST_MOE_BLOCK}, got {value!r}")
    return value


def parse_size(text: str | int | None) -> int | None:
    """Bytes behind `4GiB`, `512MiB`, `1.5G` or a plain number; raises ConfigError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
    if not match or match[2] not in UNITS:
        raise ConfigError(f"kv_cache_memory must be a size such as 4GiB or 500MB, got {text!r}")
    return int(float(match[1]) * UNITS[match[2]])


def resolve(args: EngineArgs) -> Resolved:
    """Find the model, read its config, and settle dtype, length, device and memory.

    Raises:
        ConfigError: a value is out of range, or the model cannot be found or read.
    """
    from moesaic.models.load import describe_model, read_config

    check_args(args)
    path = find_model(args.model, args.revision, args.download_dir)
    raw = read_config(path)
    architecture, spec = describe_model(path, args.model_impl, args.trust_remote_code, args.arch)
    if args.moe_top_k is not None and isinstance(spec, ForeignSpec):
        raise UnsupportedError(
            f"moe_top_k is {args.moe_top_k}, but transformers' own code chooses the experts of {architecture}: "
            "leave it out"
        )
    device = _device(args.device)
    # What transformers computes, torch computes: only its experts are the kernels'.
    who = "reference" if isinstance(spec, ForeignSpec) else args.moe_backend
    dtype = args.dtype if args.dtype != "auto" else _auto_dtype(checkpoint_dtype(raw), device, who)
    whole_prompts = isinstance(spec, ForeignSpec) and spec.whole_prompts
    if whole_prompts:
        logger.info(
            "prefix caching and chunked prompts are off: %s keeps a cache of its own a request; prompts have at most "
            "%d tokens (--max-num-batched-tokens)",
            architecture,
            args.max_num_batched_tokens,
        )
    share_prompts = isinstance(spec, ForeignSpec) or spec.shares_prompts
    if not share_prompts:
        logger.info("prefix caching is off: experts of %s keep keys and values of their own", architecture)
    length = args.max_model_len or spec.max_position_embeddings
    if length > spec.max_position_embeddings:
        raise ConfigError(f"max_model_len {length} is longer than the model's {spec.max_position_embeddings} positions")
    config = EngineConfig(
        model=ModelConfig(
            path=path,
            name=args.model,
            dtype=cast(DType, dtype),
            max_model_len=length,
            load_format=cast(LoadFormat, args.load_format),
            seed=args.seed,
            moe_backend=args.moe_backend,
            quantization=args.quantization,
            quantization_group_size=args.quantization_group_size,
            quantization_config=args.quantization_config or "",
            pack_cache=_pack_cache(args.pack_cache),
            force_pack_cache=args.pack_cache not in ("auto", "off"),
            moe_block_size=moe_block_size(args),
            model_impl=args.model_impl,
            trust_remote_code=args.trust_remote_code,
            arch=os.path.abspath(args.arch) if args.arch is not None else None,
            allow_nonfinite=args.diagnose,
            verify_weights=args.verify_weights,
            moe_top_k=args.moe_top_k,
        ),
        cache=CacheConfig(
            block_size=args.block_size,
            memory=parse_size(args.kv_cache_memory),
            memory_utilization=args.gpu_memory_utilization,
            enable_prefix_caching=args.enable_prefix_caching and share_prompts and not whole_prompts,
            state_checkpoint_interval=checkpoint_interval(args),
            dtype=cast(KVCacheDType, args.kv_cache_dtype if args.kv_cache_dtype != "auto" else dtype),
        ),
        scheduler=SchedulerConfig(
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_num_seqs=args.max_num_seqs,
            whole_prompts=whole_prompts,
            share_prompts=share_prompts,
        ),
        device=device,
        enforce_eager=args.enforce_eager,
        diagnose=args.diagnose,
        threads=args.threads or _auto_threads(spec.num_active_parameters, device),
    )
    logger.info("configuration: %s", _in_words(config))
    return Resolved(config, list(args.served_model_name) or [args.model], args.max_model_len is not None, architecture)


def _pack_cache(wanted: str) -> str | None:
    """The folder of packed weights, or None."""
    if wanted == "off":
        return None
    if wanted != "auto":
        return os.path.abspath(os.path.expanduser(wanted))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(os.environ.get("MOESAIC_CACHE") or os.path.join(base, "moesaic"), "packed")


def _in_words(config: EngineConfig) -> str:
    """All values on one line: `device=cpu model.dtype=float32 ...`."""
    nested = asdict(config)
    flat = {name: value for name, value in nested.items() if not isinstance(value, dict)}
    for group, values in nested.items():
        if isinstance(values, dict):
            flat |= {f"{group}.{name}": value for name, value in values.items()}
    return " ".join(f"{name}={value}" for name, value in flat.items())


def find_model(model: str, revision: str | None = None, download_dir: str | None = None) -> str:
    """The folder of a model, or its GGUF file: the embedded one, a path, or a hub id (downloaded, or from the hub's
    cache).

    Raises:
        ConfigError: neither; with what was tried.
    """
    if os.path.isdir(model):
        return os.path.abspath(model)
    if model == EMBEDDED_MODEL:
        return str(EMBEDDED_PATH)
    if os.path.isfile(model) and model.endswith(".gguf"):
        return os.path.abspath(model)
    if os.path.exists(model):
        raise ConfigError(
            f"model {model!r} is a file; a folder with config.json and weights is needed, or a .gguf file"
        )
    if not HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model {model!r} is neither a folder here nor a Hugging Face id (owner/name); "
            f"{EMBEDDED_MODEL} is the embedded model"
        )
    return _download(model, revision, download_dir)


def _download(repo: str, revision: str | None, download_dir: str | None) -> str:
    from huggingface_hub import HfApi, snapshot_download

    try:
        files = HfApi().model_info(repo, revision=revision, timeout=HUB_SECONDS).siblings or []
        _refuse_gguf_alone(repo, [f.rfilename for f in files])
        kinds = {os.path.splitext(f.rfilename)[1] for f in files}
        weights = next((kind for kind in (".safetensors", ".bin") if kind in kinds), None)
        others = [".pt", ".pth", ".h5", ".hdf5"] if weights is None else [weights]
        wanted = ["*.json", "*.jinja", "*.model", "*.txt", "*latest", *(f"*{kind}" for kind in others)]
        return snapshot_download(repo, revision=revision, cache_dir=download_dir, allow_patterns=wanted)
    except ConfigError:
        raise
    except Exception as error:  # whatever the hub client raises, the user's next step is the same
        refusal = ConfigError(f"model {repo!r} is no folder here, and the Hugging Face hub did not give it: {error}")
        try:
            cached = snapshot_download(repo, revision=revision, cache_dir=download_dir, local_files_only=True)
        except Exception:
            raise refusal from error
        logger.warning(
            "%s; the copy of an earlier download is used, which may be old or incomplete: %s", refusal, cached
        )
        return cached


def _refuse_gguf_alone(repo: str, files: list[str]) -> None:
    """Several models lie in one repository then, of which one is to be chosen."""
    gguf = [name for name in files if name.endswith(".gguf")]
    if gguf and not any(name.endswith(BEFORE) for name in files):
        raise ConfigError(
            f"model {repo!r} holds GGUF files alone ({', '.join(gguf[:5])}{', ...' if len(gguf) > 5 else ''}): "
            f"download one, with `hf download {repo} FILE`, and give its path"
        )


def checkpoint_dtype(config: dict[str, Any]) -> str:
    """The dtype that config.json states (transformers 5 `dtype`, 4 `torch_dtype`); float32 when it states none, or
    float64, in which nothing here computes."""
    text = config.get("text_config")
    found = [part.get(key) for part in (config, text) if isinstance(part, dict) for key in ("dtype", "torch_dtype")]
    stated = next((value for value in found if value), "float32")
    if stated == "float64":
        logger.info("dtype: the config states float64, float32 is used")
        return "float32"
    if stated not in get_args(DType):
        raise ConfigError(
            f"config.json states dtype {stated!r}; choose one with --dtype ({', '.join(get_args(DType))})"
        )
    return str(stated)


def _auto_dtype(stated: str, device: str, backend: str) -> str:
    """The checkpoint's dtype, unless plain torch computes on a CPU without instructions for it: there its products in
    16 bits are several times slower than in float32. The C++ kernels are fast in all."""
    isa = describe() if backend != "reference" else "unavailable"
    if device != "cpu" or stated == "float32" or not isa.startswith("unavailable"):
        return stated
    logger.info("dtype: the checkpoint's %s is slow in plain torch on a CPU, float32 is used", stated)
    return "float32"


def _auto_threads(active_parameters: int, device: str) -> int | None:
    """All physical cores, or one where a token meets so few parameters that threads would mostly wait for each
    other (and, once anything else wants a core, for the machine)."""
    if device != "cpu":
        return None
    return 1 if active_parameters < ONE_THREAD_PARAMETERS else physical_cores()


def _device(wanted: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU if torch sees one."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device cuda was asked for, but torch sees no GPU: use --device cpu")
    return "cuda" if available and wanted in ("auto", "cuda") else "cpu"


def physical_cores() -> int:
    """Cores this process may use, hyper-threads of one core counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        try:
            text = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            text = str(cpu)
        siblings.add(text)
    return max(1, len(siblings))
