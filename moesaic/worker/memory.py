"""How many KV blocks and state slots fit: the arithmetic of memory at start, and its errors with the numbers."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moesaic.core.config import EngineConfig
from moesaic.core.errors import ConfigError
from moesaic.core.log import get_logger
from moesaic.core.units import size_of
from moesaic.layers.kv_cache import CacheSpec, ExpertPagesSpec, StateSpec

logger = get_logger(__name__)


@dataclass(frozen=True)
class KVPlan:
    """The paged cache as it will be allocated, and the slots of what a sequence has at any length: recurrent state, or
    spare blocks of experts that keep keys and values (none for models without either)."""

    num_blocks: int
    bytes_per_block: int
    max_model_len: int
    num_slots: int = 0
    bytes_per_slot: int = 0

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block + self.num_slots * self.bytes_per_slot


def device_memory(device: str) -> int:
    """Bytes of the device: the GPU's, or the machine's (a cgroup's limit, where one is set)."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[1])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limit = file.read().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def default_share(device: str, weights: float) -> float:
    """The share of memory that weights and KV may take where nobody said: nearly all of a GPU, half of a machine that
    has other things to do, and most of it where the model needs that.

    Args:
        weights: the share that the weights take.
    """
    if device != "cpu":
        return 0.9
    return 0.5 if weights <= 0.4 else 0.8


def plan_kv(config: EngineConfig, specs: Sequence[CacheSpec], weight_bytes: int, explicit_len: bool) -> KVPlan:
    """Size the KV cache: as large as was asked for, or as the utilisation leaves beside the weights, but never
    larger than all sequences at full length could fill. Recurrent state has its share of the same memory.

    Args:
        weight_bytes: what the model's parameters take.
        explicit_len: max_model_len was given, so that it may not be shortened to fit.

    Raises:
        ConfigError: not even one sequence fits (the numbers, and what to change).
    """
    block_size = config.cache.block_size
    per_block = sum(spec.bytes_per_block(block_size) for spec in specs if not isinstance(spec, StateSpec))
    per_slot = sum(spec.bytes_per_slot for spec in specs if isinstance(spec, StateSpec))
    per_slot += sum(spec.bytes_per_slot(block_size) for spec in specs if isinstance(spec, ExpertPagesSpec))
    full_length = -(-config.model.max_model_len // block_size)
    most_blocks = full_length * config.scheduler.max_num_seqs
    if config.cache.memory is not None:
        budget = config.cache.memory
        source = f"--kv-cache-memory {size_of(budget)}"
    else:
        total = device_memory(config.device)
        share = config.cache.memory_utilization or default_share(config.device, weight_bytes / total)
        budget = int(total * share) - weight_bytes
        source = f"{share:.0%} of {size_of(total)}, less {size_of(weight_bytes)} of weights,"
    # A length that may be shortened leaves slots an eighth, or sequences would wait for each other's few.
    least_kv = full_length * per_block if explicit_len else min(full_length * per_block, budget - budget // 8)
    num_slots = _num_slots(config, budget, per_slot, least_kv, most_blocks * per_block)
    left = budget - num_slots * per_slot
    num_blocks = left // per_block if per_block else most_blocks if left >= 0 else 0
    if config.cache.memory is None:
        num_blocks = min(num_blocks, most_blocks)
    if num_blocks >= full_length:
        return KVPlan(num_blocks, per_block, config.model.max_model_len, num_slots, per_slot)
    fits = max(0, num_blocks) * block_size
    if explicit_len or fits < 2 * block_size:
        shorter = f", or set --max-model-len to at most {fits}" if fits >= 2 * block_size else ""
        state = f" ({size_of(per_slot)} of it at any length)" if per_slot else ""
        raise ConfigError(
            f"KV memory is too small for one request of {config.model.max_model_len} tokens: it needs "
            f"{size_of(full_length * per_block + per_slot)}{state}, and {source} leaves {size_of(max(budget, 0))}. "
            f"Raise --kv-cache-memory or --gpu-memory-utilization{shorter}."
        )
    logger.warning("max_model_len shortened from %d to %d: what fits in %s", config.model.max_model_len, fits, source)
    return KVPlan(num_blocks, per_block, fits, num_slots, per_slot)


def _num_slots(config: EngineConfig, budget: int, per_slot: int, least_kv: int, most_kv: int) -> int:
    """Slots of recurrent state in `budget`: half of it, or what keys and values could not use, and one at least; but
    no more than all sequences and their checkpoints could fill.

    Args:
        least_kv, most_kv: bytes of keys and values that must remain, and those of all sequences at full length.
    """
    if not per_slot:
        return 0
    checkpoints = config.model.max_model_len // config.cache.state_checkpoint_interval + 1
    most = config.scheduler.max_num_seqs * (1 + checkpoints * config.cache.enable_prefix_caching)
    fit = min(max(budget // 2, budget - most_kv), budget - least_kv) // per_slot
    return max(1, min(most, fit))
