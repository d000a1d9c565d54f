"""Watching a model compute: every kernel's output is looked at as it is given, so that the first number that is not
finite is found where it arises.

While a watch is on, each layer's kernels are replaced by ones that look; without one, they are the kernels themselves,
so that being able to watch costs nothing. By induction the first operation with a bad row had good ones as its input.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.core.log import get_logger
from moesaic.experts.routing import Router, RoutingKernels
from moesaic.kernels.registry import BACKENDS, FAMILY_OF, kernel
from moesaic.layers.kv_cache import TiledCache
from moesaic.layers.moe_paged_attention import MoEPagedAttention
from moesaic.worker.causes import Examiner
from moesaic.worker.findings import Finding
from moesaic.worker.weight_notes import Weights

logger = get_logger(__name__)

# What gives no numbers of tokens.
SKIPPED = ("rope_table", "plan_attention", "query_temperature", "select_positions")
RECENT = 6  # operations before a finding of which it tells


@dataclass(frozen=True, eq=False)
class Site:
    """A place where a kernel is called.

    Attributes:
        path: of the module.
        op: of the kernel; "module" for a whole module of another library's.
        scattered: its rows are not the step's tokens in their order.
    """

    path: str
    module: nn.Module
    op: str
    scattered: bool


@dataclass(frozen=True, eq=False)
class Sight:
    """One call of a kernel with an output that is not finite.

    Attributes:
        part: which of its outputs.
        before: the largest values of what the operations before it gave.
        kept: it is about what was written to the cache, not about the output.
    """

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    part: int
    before: list[tuple[str, float]]
    kept: bool = False

    @property
    def bad_rows(self) -> Tensor:
        """`[rows]` bool."""
        return ~self.output.flatten(1).isfinite().all(1) if self.output.dim() > 1 else ~self.output.isfinite()


class Watch:
    """Looks at all that a model's kernels give.

    Attributes:
        peaks: the largest finite absolute value of each place's output since the start, and its dtype.
        findings: all so far, the first of each place.
    """

    def __init__(self, model: Any) -> None:
        self.peaks: dict[str, tuple[float, torch.dtype]] = {}
        self.findings: list[Finding] = []
        self._examiner = Examiner(model)
        self._of_sequence: dict[int, Finding] = {}
        self._pending: Sight | None = None  # a place in this step whose rows are other than the step's tokens
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        self._hooks: list[Any] = []
        if isinstance(model, nn.Module):
            self._replace_kernels(model)
        else:  # what transformers computes
            self._hook(model.model)

    @property
    def weights(self) -> Weights:
        """The model's, by name."""
        return self._examiner.weights

    def begin(self, batch: Batch) -> None:
        """A step starts."""
        self._batch = batch
        self._sequence_of = [s for s, n in zip(batch.seq_ids, batch.query_lens_host, strict=True) for _ in range(n)]
        self._bad: set[int] = set()
        self._pending = None
        self._rows: list[int] | None = None  # tokens whose logits are made, once they are
        self._recent: list[tuple[str, float]] = []
        self._examiner.routers.clear()

    def finding_of(self, seq_id: int) -> Finding | None:
        """Where the numbers of a sequence stopped being finite; None where nothing was seen.

        A place whose rows are no tokens of the step, and behind which nothing told whose they are, is anyone's.
        """
        if seq_id not in self._of_sequence and self._pending is not None:
            self._of_sequence[seq_id] = self._examine(self._pending, 0, 0)
        return self._of_sequence.get(seq_id)

    def forget(self, seq_ids: Iterable[int]) -> None:
        """Sequences have left."""
        for seq_id in seq_ids:
            self._of_sequence.pop(seq_id, None)

    def detach(self) -> None:
        """Let the model be as it was."""
        for module, name, function in self._replaced:
            setattr(module, name, function)
        for hook in self._hooks:
            hook.remove()

    def _replace_kernels(self, model: nn.Module) -> None:
        ops = {id(kernel(op, backend)): op for op in FAMILY_OF if op not in SKIPPED for backend in BACKENDS}
        scattered = [path for path, m in model.named_modules() if isinstance(m, MoEPagedAttention)]
        for path, module in model.named_modules():
            inside = any(path == p or path.startswith(f"{p}.") for p in scattered)
            for name, value in list(vars(module).items()):
                if isinstance(value, RoutingKernels):
                    sites = (Site(path, module, op, inside) for op in value._fields)
                    setattr(module, name, RoutingKernels(*map(self._looking, sites, value)))
                elif id(value) in ops:
                    setattr(module, name, self._looking(Site(path, module, ops[id(value)], inside), value))
                else:
                    continue
                self._replaced.append((module, name, value))

    def _looking(self, site: Site, function: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **kwargs: Any) -> Any:
            output = function(*args, **kwargs)
            self._see(site, args, kwargs, output)
            return output

        return look

    def _hook(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            site = Site(path, module, "module", False)

            def look(module: nn.Module, args: Any, output: Any, site: Site = site) -> None:
                self._see(site, args, {}, [tensor[0] if tensor.dim() > 2 else tensor for tensor in _floats(output)])

            self._hooks.append(module.register_forward_hook(look))

    def _see(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if site.op == "route":
            self._examiner.routers[site.path] = args[0], *output
        if site.op == "gather_rows":
            self._rows = args[1].tolist()
        if site.op == "head_linear" and len(args) > 2 and args[2]:
            output = output[..., : -args[2]]  # the rest is room for what comes next
        for part, tensor in enumerate(_floats(output)):
            peak = _peak(tensor)
            name = self._examiner.name_of(site.path, site.op, part)
            if isfinite(peak):
                self._recent = [*self._recent[1 - RECENT :], (name, peak)]
                if peak >= self.peaks.get(name, (0.0,))[0]:
                    self.peaks[name] = peak, tensor.dtype
            elif not (isinstance(site.module, Router) and bool((tensor < inf).all())):  # -inf: it is never chosen
                self._found(Sight(site, args, kwargs, tensor, part, self._recent))
            if self._pending is not None and self._tokens_of(site, len(tensor), []) is not None:
                self._pending = None  # who it was of has shown, or it came to nothing
        if site.op == "prepare_qkv" and (kept := _overflowing(args, kwargs, output)) is not None:
            self._found(Sight(site, args, kwargs, kept, 0, self._recent, kept=True))

    def _found(self, sight: Sight) -> None:
        """Blame the place for each sequence whose rows were good until here."""
        rows = sight.bad_rows.nonzero().flatten().tolist()
        tokens = self._tokens_of(sight.site, len(sight.bad_rows), rows)
        if tokens is None:
            self._pending = self._pending or sight
            return
        new = {token: row for token, row in zip(tokens, rows, strict=True) if token not in self._bad}
        self._bad.update(new)
        for token, row in new.items():
            seq_id = self._sequence_of[token]
            if seq_id not in self._of_sequence:
                self._of_sequence[seq_id] = self._examine(sight, row, token)

    def _tokens_of(self, site: Site, count: int, rows: list[int]) -> list[int] | None:
        """The step's tokens that these rows of so many are; None where they are others."""
        if site.scattered:
            return None
        if self._rows is not None:
            return [self._rows[row] for row in rows] if count == len(self._rows) else None
        return rows if count == len(self._sequence_of) else None

    def _examine(self, sight: Sight, row: int, token: int) -> Finding:
        position: int | None = int(self._batch.positions[token])
        if self._pending is not None:
            sight = self._pending
            row, position = int(sight.bad_rows.nonzero()[0]), None
        finding = self._examiner.examine(sight, row, position)
        if all(finding.place != known.place for known in self.findings):
            self.findings.append(finding)
            logger.error("%s", finding)
            for line in finding.details():
                logger.error("  %s", line)
        return finding


def _floats(output: Any) -> Iterator[Tensor]:
    """The floating tensors of an output."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim() and output.numel():
            yield output
    elif isinstance(output, tuple | list):
        for each in output:
            yield from _floats(each)
    elif isinstance(output, dict):
        yield from _floats(list(output.values()))


def _peak(tensor: Tensor) -> float:
    """The largest absolute value; NaN where there is one."""
    low, high = (float(x) for x in torch.aminmax(tensor))
    return max(-low, high) if low == low else low


def _overflowing(args: tuple[Any, ...], kwargs: dict[str, Any], query: Tensor) -> Tensor | None:
    """Keys and values `[T, n]` as a cache in float16 keeps them, where some of them end there; else None."""
    cache = args[5]
    dtype = cache.spec.dtype if isinstance(cache, TiledCache) else cache.key.dtype
    if dtype is not torch.float16:
        return None
    num_kv_heads, head_dim, qkv = args[2], query.shape[-1], args[0]
    if isinstance(qkv, Tensor):
        _, key, value = qkv.split_with_sizes(
            [n := query.shape[1] * head_dim, k := num_kv_heads * head_dim, qkv.shape[1] - n - k], 1
        )
    else:
        _, key, value = qkv
    parts = [value] if kwargs.get("k_norm") is not None or kwargs.get("clip") is not None else [key, value]
    kept = torch.cat([part.flatten(1) for part in parts], 1).half()
    return None if kept.isfinite().all() else kept
