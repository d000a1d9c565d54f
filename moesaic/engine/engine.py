"""The engine: token ids in, token ids out. Text is the front end's matter."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from torch import nn

from moesaic.core.errors import ConfigError, MoesaicError, RequestError, unknown_name
from moesaic.core.log import get_logger
from moesaic.core.messages import EngineInfo, EngineStats, MoeSummary
from moesaic.core.request import EngineRequest, SequenceUpdate
from moesaic.core.step import Sampled, StepPlan, StepResult
from moesaic.engine.args import EngineArgs
from moesaic.engine.moe_statistics import MoeStatistics, expert_memory
from moesaic.engine.recording import RouteRecording
from moesaic.engine.resolve import resolve
from moesaic.experts.function_loading import load_function
from moesaic.experts.functions import RoutingFunctions
from moesaic.experts.load import share
from moesaic.experts.simulated import Simulation
from moesaic.models.load import eos_token_ids, read_config
from moesaic.models.spec import ModelSpec
from moesaic.scheduler.scheduler import Scheduler
from moesaic.worker.executor import LocalExecutor

logger = get_logger(__name__)


def describe(architecture: str, spec: ModelSpec) -> str:
    """One line for people: `Qwen3MoeForCausalLM, 30.5 B parameters, 3.3 B active`."""
    total, active = spec.num_parameters, spec.num_active_parameters
    text = f"{architecture}, {count_of(total)} parameters"
    return text if active == total else f"{text}, {count_of(active)} active"


def count_of(number: int) -> str:
    """`6.8 M`, `30.5 B`."""
    unit, divisor = ("B", 1e9) if number >= 1e9 else ("M", 1e6)
    return f"{number / divisor:.3g} {unit}"


class Engine:
    """Scheduler and worker, driven one step at a time.

    Attributes:
        info: what a front end must know.
        recording: of the routes of all tokens, where that is asked for.
        answers: what `ask` can be asked: kind -> a function of the question's arguments, which returns plain data.
    """

    def __init__(self, args: EngineArgs) -> None:
        start = perf_counter()
        simulation = Simulation.parse(args.simulate_routing) if args.simulate_routing is not None else None
        functions = {name: load_function(name) for name in args.moe_routing_func}
        resolved = resolve(args)
        config = resolved.config
        self.executor = LocalExecutor(config, resolved.explicit_len)
        kv = self.executor.kv
        self.scheduler = Scheduler(config.scheduler, config.cache, kv.num_blocks, kv.num_slots)
        model = self.executor.model
        if config.model.moe_top_k is not None:
            self.scheduler.kv.routes.server = f"top_k {config.model.moe_top_k}"
        self.statistics = MoeStatistics(model.expert_stats, model.steering.routings)
        self._expert_memory = expert_memory(model) if isinstance(model, nn.Module) else (0, 0)
        self.recording = RouteRecording(resolved.names[0], model.expert_stats.taps)
        self.answers: dict[str, Callable[..., Any]] = {
            "profile_start": self.recording.start,
            "profile_stop": self.recording.stop,
            "profile_status": self.recording.status,
            "experts": self.statistics.experts,
            "summary": self.summary,
        }
        if simulation is not None:
            model.steering.simulate(simulation, args.seed)
        for name, function in functions.items():
            self.register_routing_function(function, name=name)
        self.info = EngineInfo(
            model_path=config.model.path,
            names=resolved.names,
            architecture=resolved.architecture,
            description=describe(resolved.architecture, model.spec),
            max_model_len=kv.max_model_len,
            vocab_size=model.spec.vocab_size,
            eos_token_ids=eos_token_ids(config.model.path, read_config(config.model.path)),
            num_blocks=kv.num_blocks,
            block_size=config.cache.block_size,
            kv_bytes=kv.num_blocks * kv.bytes_per_block,
            num_state_slots=kv.num_slots,
            most_prompt_tokens=config.scheduler.max_num_batched_tokens if config.scheduler.whole_prompts else None,
            moe=model.steering.shape,
            routing_functions=list(functions),
            dtype=config.model.dtype,
            device=config.device,
            seed=args.seed,
            startup_seconds=perf_counter() - start,
        )
        logger.info(
            "ready in %.1f s: %s, %s on %s",
            self.info.startup_seconds,
            self.info.description,
            self.info.dtype,
            self.info.device,
        )

    def add(self, request: EngineRequest) -> None:
        """Queue a request; raises RequestError if it can never be served."""
        self.scheduler.add(request)

    def abort(self, request_id: str, index: int = -1) -> None:
        """Forget a request, or one of its sequences; its blocks are free at once."""
        self.scheduler.abort(request_id, index)
        self._let_go()

    def register_routing_function(self, function: Callable[..., Any], **options: Any) -> str:
        """Let a function decide over routes, behind those that do (`experts.functions.RoutingFunctions.register`).

        Raises:
            ConfigError: it cannot be used, or requests are under way, whose routes must not change midway.
        """
        name = self._functions().register(function, **options)
        self._tell_routes()
        return name

    def unregister_routing_function(self, name: str) -> None:
        """Let it decide no more. Raises ConfigError as `register_routing_function`, and for an unknown name."""
        self._functions().unregister(name)
        self._tell_routes()

    def _functions(self) -> RoutingFunctions:
        if self.has_unfinished:
            raise ConfigError(
                "routing functions cannot change while requests are under way: finish or abort them first"
            )
        return self.executor.model.steering.functions

    def _tell_routes(self) -> None:
        """Prefixes computed under other functions are not found again."""
        functions, routes = self.executor.model.steering.functions, self.scheduler.kv.routes
        routes.functions, routes.reads_tags = functions.key, bool(functions)

    def ask(self, kind: str, **arguments: Any) -> Any:
        """What one of `answers` says, between two steps.

        Raises:
            RequestError: nobody answers this kind, or what was asked for is not there.
        """
        if kind not in self.answers:
            raise RequestError(unknown_name("question", kind, self.answers))
        return self.answers[kind](**arguments)

    @property
    def has_unfinished(self) -> bool:
        return self.scheduler.has_unfinished

    def step(self) -> list[SequenceUpdate]:
        """Run one step: plan it, execute it, book what it did."""
        start = perf_counter()
        plan = self.scheduler.schedule()
        plan.records = self.recording.active
        result = self._execute(plan)
        if plan.records:
            self.recording.take(plan, result.routes, self.scheduler.sequence)
        updates = self.scheduler.update(plan, result)
        self._let_go()
        self._count(perf_counter() - start, result)
        return updates

    def _let_go(self) -> None:
        """Tell the worker of the last sequences that left: an idle engine takes no step that would."""
        if not self.scheduler.has_unfinished:
            plan = self.scheduler.schedule()
            if plan.gone:
                self._execute(plan)

    def _execute(self, plan: StepPlan) -> StepResult:
        """A step that fails takes down the sequences in it, and nothing else."""
        self.statistics.before_step()
        try:
            result = self.executor.execute(plan)
            self.statistics.after_step(plan)
            return result
        except Exception as error:
            logger.exception("a step of %d tokens failed", plan.num_tokens)
            kind = "" if isinstance(error, MoesaicError) else f"{type(error).__name__}: "
            message = f"the engine failed on this batch: {kind}{error}"
            return StepResult([Sampled(item.seq_id, None, error=message) for item in plan.advance], 0.0)

    def _count(self, step_seconds: float, result: StepResult) -> None:
        stats = self.scheduler.stats
        stats.steps_total += 1
        stats.step_seconds_total += step_seconds
        stats.forward_seconds_total += result.forward_seconds
        stats.routing_seconds_total += result.routing_seconds

    @property
    def stats(self) -> EngineStats:
        """Counters and gauges as they are now."""
        return self.scheduler.snapshot()

    def summary(self) -> MoeSummary:
        """Figures of experts and memory as they are now."""
        summary = self.statistics.summary()
        allocated, filled = self._expert_memory
        summary.expert_bytes, summary.expert_fragmentation = allocated, share(allocated - filled, allocated)
        summary.kv_fragmentation = self.scheduler.fragmentation()
        return summary

    def check_integrity(self) -> None:
        """Prove that the blocks in use are exactly those that live sequences hold; raises MoesaicError."""
        self.scheduler.check_integrity()
