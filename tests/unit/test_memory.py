"""What share of memory weights and caches may take where nobody said, and how KV and recurrent state share it."""

import pytest
import torch

from moesaic.core.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from moesaic.core.errors import ConfigError
from moesaic.core.units import count_of, size_of
from moesaic.kernels.cpu.arena import allocate
from moesaic.layers.kv_cache import KVCacheSpec, StateSpec
from moesaic.worker.memory import default_share, plan_kv

KV = KVCacheSpec(1, 8, torch.float32)  # 64 bytes a token
STATE = StateSpec({"conv": (3, 100)})  # 1,200 bytes
BLOCK = KV.bytes_per_block(16)


def config(memory: int | None, prefix_caching: bool = True, length: int = 160, seqs: int = 4) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(path="", name="", dtype="float32", max_model_len=length, load_format="auto", seed=0),
        cache=CacheConfig(
            block_size=16,
            memory=memory,
            memory_utilization=None,
            enable_prefix_caching=prefix_caching,
            state_checkpoint_interval=32,
        ),
        scheduler=SchedulerConfig(max_num_batched_tokens=64, max_num_seqs=seqs),
        device="cpu",
        threads=None,
    )


def test_a_large_model_gets_more_of_the_machine():
    assert [default_share("cpu", weights) for weights in (0.01, 0.4, 0.41, 0.7)] == [0.5, 0.5, 0.8, 0.8]
    assert default_share("cuda:0", 0.7) == default_share("cuda:0", 0.1) == 0.9


def test_sizes_as_people_read_them():
    assert [size_of(n) for n in (980, 50_000, 1_342_177_280)] == ["980 B", "48.8 KiB", "1.25 GiB"]


def test_without_recurrent_layers_all_is_for_blocks():
    plan = plan_kv(config(100_000), [KV, KV], 0, False)
    assert (plan.num_blocks, plan.num_slots) == (100_000 // (2 * BLOCK), 0)


def test_state_has_half_of_the_memory_and_blocks_the_rest():
    plan = plan_kv(config(40_000), [KV, STATE], 0, False)
    assert plan.num_slots == 20_000 // 1200
    assert plan.num_blocks == (40_000 - plan.num_slots * 1200) // BLOCK
    assert plan.total_bytes <= 40_000


def test_slots_are_no_more_than_sequences_and_their_checkpoints_fill():
    assert plan_kv(config(10**9), [KV, STATE], 0, False).num_slots == 4 * (1 + 6)
    assert plan_kv(config(10**9, prefix_caching=False), [KV, STATE], 0, False).num_slots == 4


def test_one_sequence_of_full_length_goes_before_slots():
    plan = plan_kv(config(10 * BLOCK + 2 * 1200 + 500), [KV, STATE], 0, True)
    assert (plan.num_blocks, plan.num_slots) == (10, 2)


def test_a_length_that_was_not_asked_for_is_shortened_beside_one_slot():
    plan = plan_kv(config(5 * BLOCK + 1200), [KV, STATE], 0, False)
    assert (plan.num_blocks, plan.num_slots, plan.max_model_len) == (5, 1, 80)


def test_a_length_that_was_not_asked_for_leaves_slots_an_eighth():
    small = StateSpec({"conv": (3, 10)})  # 120 bytes
    memory = 8 * BLOCK  # of 10 for the whole length
    plan = plan_kv(config(memory), [KV, small], 0, False)
    assert (plan.num_blocks, plan.num_slots, plan.max_model_len) == (7, BLOCK // 120, 112)
    assert plan_kv(config(10 * BLOCK + 120), [KV, small], 0, True).num_slots == 1


def test_what_is_too_small_says_what_the_state_takes():
    with pytest.raises(ConfigError, match=r"needs 11.2 KiB \(1.17 KiB of it at any length\), and .* 1000 B"):
        plan_kv(config(1000), [KV, STATE], 0, False)
    with pytest.raises(ConfigError, match="too small"):
        plan_kv(config(5 * BLOCK + 1200), [KV, STATE], 0, True)


def test_layers_that_keep_no_keys_and_values_have_blocks_that_cost_nothing():
    plan = plan_kv(config(5000), [STATE], 0, True)
    assert (plan.num_blocks, plan.num_slots, plan.total_bytes) == (40, 4, 4800)
    with pytest.raises(ConfigError, match="too small"):
        plan_kv(config(1000), [STATE], 0, False)


def test_numbers_as_people_read_them():
    assert [size_of(n) for n in (0, 980, 50_000, 1 << 20, 5 << 30)] == ["0 B", "980 B", "48.8 KiB", "1 MiB", "5 GiB"]
    assert [count_of(n) for n in (0, 980, 48_800, 103_022_592, 6_919_161_856)] == [
        "0",
        "980",
        "48.8 K",
        "103 M",
        "6.92 B",
    ]


def test_more_memory_than_there_can_be_is_refused_in_words():
    for nbytes in (1 << 47, 1 << 70):
        with pytest.raises(ConfigError, match=r"there is no memory for [0-9.]+ GB of weights"):
            allocate(nbytes)
