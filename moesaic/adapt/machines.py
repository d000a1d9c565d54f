"""What a machine can do: the one at hand, measured; or accelerators, by what their makers state."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from moesaic.core.errors import ConfigError, unknown_name
from moesaic.engine.resolve import parse_size, physical_cores

T = TypeVar("T")
GIGA = 1e9
HOST_LINK = 25 * GIGA  # bytes a second from the host's memory to an accelerator: PCIe 4.0 x16, as measured in practice
DISK = 2 * GIGA  # bytes a second from a solid-state disk
HOP_SECONDS = 15e-6  # of a collective operation among accelerators of one host, whatever it carries


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a model is to run; rates are of one device.

    Attributes:
        memory: bytes a device has.
        usable: share of it that weights and KV may take together.
        bandwidth: bytes a second that its memory gives.
        compute: operations a second of matrix products: in "fp32", "bf16" and "u8s8", as far as known.
        link: bytes a second between two devices; 0 where there is one.
        measured: whether the rates were measured just now, here, or are the maker's.
    """

    name: str
    device: str
    memory: int
    usable: float
    bandwidth: float
    compute: dict[str, float]
    count: int = 1
    link: float = 0.0
    measured: bool = False

    def __str__(self) -> str:
        return f"{self.count} x {self.name}" if self.count > 1 else self.name


@dataclass(frozen=True)
class _Accelerator:
    """Memory in GB, bandwidth in GB/s, dense bf16 products in TFLOP/s, link in GB/s a direction."""

    memory: float
    bandwidth: float
    bf16: float
    link: float


# As their makers state them; what is served reaches most of the bandwidth and about half of the products.
ACCELERATORS = {
    "B200": _Accelerator(180, 8000, 2250, 900),
    "H200": _Accelerator(141, 4800, 989, 450),
    "H100": _Accelerator(80, 3350, 989, 450),
    "A100-80GB": _Accelerator(80, 2039, 312, 300),
    "A100-40GB": _Accelerator(40, 1555, 312, 300),
    "L40S": _Accelerator(48, 864, 362, 32),
    "L4": _Accelerator(24, 300, 121, 32),
    "A10": _Accelerator(24, 600, 125, 32),
    "T4": _Accelerator(16, 320, 65, 16),
    "RTX5090": _Accelerator(32, 1792, 210, 64),
    "RTX4090": _Accelerator(24, 1008, 165, 32),
    "RTX3090": _Accelerator(24, 936, 71, 32),
    "MI300X": _Accelerator(192, 5300, 1307, 448),
}


def accelerators(text: str) -> Machine:
    """The machine that `8xH200` or `H100` means. Raises ConfigError for what is not known."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[xX*]\s*)?([\w-]+)\s*", text)
    if match is None or match[1] == "0":
        raise ConfigError(f"--gpus must be a number and a kind, such as 8xH200, got {text!r}")
    kinds = {name.lower(): name for name in ACCELERATORS}
    name = kinds.get(match[2].lower())
    if name is None:
        known = ", ".join(ACCELERATORS)
        raise ConfigError(
            f"--gpus: {unknown_name('kind', match[2], ACCELERATORS)} (known are {known}; for others say --memory, "
            "--bandwidth and --compute)"
        )
    known_facts = ACCELERATORS[name]
    return Machine(
        name=name,
        device="cuda",
        memory=int(known_facts.memory * GIGA),
        usable=0.9,
        bandwidth=known_facts.bandwidth * GIGA,
        compute={"bf16": known_facts.bf16 * 1e12},
        count=int(match[1] or 1),
        link=known_facts.link * GIGA,
    )


def this_machine(threads: int | None = None, bandwidth: float | None = None, compute: float | None = None) -> Machine:
    """The machine at hand. Rates that are not given are measured now, with as many threads (a second or two)."""
    from moesaic.worker.memory import device_memory

    cores = threads or physical_cores()
    return Machine(
        name=f"this machine, {cores} thread{'s' * (cores > 1)}",
        device="cpu",
        memory=device_memory("cpu"),
        usable=0.8,
        bandwidth=bandwidth or _measured(cores, _bandwidth),
        compute={"fp32": compute} if compute else _measured(cores, _products),
        measured=not (bandwidth and compute),
    )


def _measured(threads: int, measure: Callable[[], T]) -> T:
    """What a measurement gives with so many of torch's threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def _bandwidth() -> float:
    from moesaic.kernels.cpu.limits import Stream

    return Stream().read()


def _products() -> dict[str, float]:
    from moesaic.kernels.cpu.limits import gemm_peak, has_bf16

    return {kind: gemm_peak(kind) for kind in ("fp32", "bf16") if kind == "fp32" or has_bf16()}


def size_given(name: str, text: str) -> int:
    """Bytes behind a flag such as `--memory 24GiB`. Raises ConfigError naming the flag."""
    try:
        size = parse_size(text)
    except ConfigError:
        raise ConfigError(f"{name} must be a size such as 24GiB or 500MB, got {text!r}") from None
    assert size is not None
    return size
