"""Where plans are carried out. One kind yet: a worker in the engine's own process."""

import torch

from moesaic.core.config import EngineConfig
from moesaic.core.log import get_logger
from moesaic.core.step import StepPlan, StepResult
from moesaic.core.units import size_of
from moesaic.layers.kv_cache import Cache, CacheSpec, ExpertPagesSpec, StateSpec
from moesaic.models.load import load_model
from moesaic.worker.inputs import SequenceTable
from moesaic.worker.memory import plan_kv
from moesaic.worker.runner import Runner
from moesaic.worker.watch import Watch

logger = get_logger(__name__)


class LocalExecutor:
    """Loads the model on this process's device and executes plans there.

    Attributes:
        kv: the cache as allocated; its max_model_len may be shorter than the configuration's.
    """

    def __init__(self, config: EngineConfig, explicit_len: bool) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model = load_model(config.model, config.device, config.cache.block_size, kv_dtype=config.cache.dtype)
        specs = self.model.cache_specs()
        self.kv = plan_kv(config, specs, self.model.weight_bytes(), explicit_len)
        blocks = self.kv.num_blocks, config.cache.block_size
        caches = [self._allocate(spec, *blocks, config.device) for spec in specs]
        table = SequenceTable(
            config.scheduler.max_num_seqs,
            self.kv.max_model_len,
            config.cache.block_size,
            config.device,
            recurrent=self.kv.num_slots > 0,
        )
        watch = Watch(self.model) if config.diagnose else None
        replay = not config.enforce_eager and watch is None
        self.runner = Runner(self.model, caches, table, replay, watch)
        logger.info(
            "KV cache: %d blocks of %d tokens, %s", *blocks, size_of(self.kv.num_blocks * self.kv.bytes_per_block)
        )
        if self.kv.num_slots:
            logger.info(
                "kept of a sequence at any length: %d slots of %s, %s; at most %d sequences run at once%s",
                self.kv.num_slots,
                size_of(self.kv.bytes_per_slot),
                size_of(self.kv.num_slots * self.kv.bytes_per_slot),
                min(self.kv.num_slots, config.scheduler.max_num_seqs),
                ", and slots that they leave keep checkpoints" if config.cache.enable_prefix_caching else "",
            )

    def _allocate(self, spec: CacheSpec, num_blocks: int, block_size: int, device: str) -> Cache:
        if isinstance(spec, StateSpec):
            return spec.allocate(self.kv.num_slots, device)
        if isinstance(spec, ExpertPagesSpec):
            return spec.allocate(num_blocks, self.kv.num_slots, block_size, device)
        return spec.allocate(num_blocks, block_size, device)

    def execute(self, plan: StepPlan) -> StepResult:
        """Carry out one plan."""
        return self.runner.execute(plan)
