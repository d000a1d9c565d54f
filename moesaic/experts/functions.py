"""Custom routing: functions of a user's that change the router's scores before the choice, without touching the model.

Two signatures. The simple one is `fn(scores, domain_tags) -> scores`: `scores` `[T, E]` fp32 is what the router makes
of its logits for T tokens (probabilities, where it scores by softmax), `domain_tags` the tags of each token's request,
of which `domain_tags == "finance"` makes a mask `[T]`. The full one is `fn(RoutingInput) -> RoutingDecision`. Functions
compose: each is given what the ones before it have made. What comes out of one is checked, and a function that raises,
or gives what nothing can be chosen by, fails the step that it was called in (`RoutingFunctionError`), no other.

A pure function makes of a token what it would make of it alone, so that nobody's results depend on who shares a batch.
Whether that holds to the last bit depends on what it calls (a matrix product may add up in another order for more
rows), so it is tried when a function is registered (`_stands_alone`); one that fails is called row by row.
`pure=False` says that a function is to look across tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor

from moesaic.core.errors import ConfigError, MoesaicError, unknown_name
from moesaic.core.log import get_logger
from moesaic.core.routing import LayerShape, MoeShape
from moesaic.experts.function_signature import Signature, signature_of, source_hash
from moesaic.experts.function_types import DomainTags, Look, RequestIds, RoutingDecision, RoutingInput
from moesaic.kernels.reference_router import route_changes

logger = get_logger(__name__)

PROBED_ROWS = 37  # neither a power of 2 nor a multiple of what vectors hold


class RoutingFunctionError(MoesaicError):
    """A routing function raised, or gave what cannot be chosen by; the requests of the step fail."""


@dataclass
class RoutingFunction:
    """A registered function.

    Attributes:
        identity: name and version; equal ones make the same routes.
        pure: a token's result depends on that token alone.
        by_row: it is called for one token at a time.
        seconds: spent in it since it was last asked.
    """

    name: str
    function: Callable[..., Any]
    signature: Signature
    pure: bool
    identity: str
    by_row: bool = False
    seconds: float = 0.0

    def __call__(self, given: RoutingInput, look: Look | None) -> RoutingDecision:
        """The decision for all tokens: scores `[T, E]`, k `[T]` int64.

        Args:
            look: checks the scores; None where they are checked later (`check`).

        Raises:
            RoutingFunctionError: the function raised, or what it gave cannot be used.
        """
        start = perf_counter()
        try:
            if not self.by_row or len(given.scores) < 2:
                return self._call(given, look)
            rows = [self._call(given.of(slice(row, row + 1)), look) for row in range(len(given.scores))]
            scores, ks = zip(*((cast(Tensor, row.scores), cast(Tensor, row.k)) for row in rows), strict=True)
            return RoutingDecision(torch.cat(scores), torch.cat(ks))
        finally:
            self.seconds += perf_counter() - start

    def _call(self, given: RoutingInput, look: Look | None) -> RoutingDecision:
        scores = given.scores.clone()  # it may write into them
        try:
            if self.signature == "simple":
                result = self.function(scores, given.tags)
            else:
                result = self.function(replace(given, scores=scores, k=given.k.clone()))
        except Exception as error:
            raise self._error(given, f"raised {type(error).__name__}: {error}") from error
        if self.signature == "simple":
            result = RoutingDecision(result)
            if result.scores is None:
                raise self._error(given, "gave None: it must return the scores")
        if not isinstance(result, RoutingDecision):
            raise self._error(given, f"gave {_kind(result)}, and not a RoutingDecision")
        return RoutingDecision(self._scores(result.scores, given, look), self._k(result.k, given))

    def _scores(self, scores: Any, given: RoutingInput, look: Look | None) -> Tensor:
        """What it made of the scores."""
        before = given.scores
        if scores is None:
            return before
        if not isinstance(scores, Tensor) or scores.shape != before.shape or scores.dtype != before.dtype:
            raise self._error(given, f"gave {_kind(scores)} for scores of {_kind(before)}")
        if scores.device != before.device:
            raise self._error(given, f"gave scores on {scores.device}, they were on {before.device}")
        scores = scores.contiguous()
        if look is not None and look(before, scores).faulty:
            self.check(scores, given)
        return scores

    def check(self, scores: Tensor, given: RoutingInput) -> None:
        """Raise RoutingFunctionError where the scores `[T, E]` that it made of its input cannot be chosen by."""
        changed = scores[given.scores.isfinite().all(1)]  # a model with weights of NaN is none of the function's fault
        if not changed.isfinite().all():
            raise self._error(given, "gave scores that are not finite")
        if (changed < 0).any():
            raise self._error(given, f"gave a negative score, {float(changed.min()):.6g}")
        if not (changed > 0).any(1).all():
            raise self._error(given, "left a token no expert to choose: all of its scores are 0")

    def _k(self, k: Any, given: RoutingInput) -> Tensor:
        """How many experts it gave each token."""
        if k is None:
            return given.k
        most = given.scores.shape[1]
        if isinstance(k, int) and not isinstance(k, bool):
            k = torch.full_like(given.k, k)
        if not isinstance(k, Tensor) or k.shape != given.k.shape or k.is_floating_point() or k.dtype == torch.bool:
            raise self._error(given, f"gave {_kind(k)} for k: a whole number, or {len(given.k)} of them, one a token")
        if len(k) and not (int(k.min()) >= 1 and int(k.max()) <= most):
            raise self._error(given, f"gave a k from {int(k.min())} to {int(k.max())}: it must be 1 to {most}")
        return k.to(given.k)

    def _error(self, given: RoutingInput, what: str) -> RoutingFunctionError:
        return RoutingFunctionError(f"the routing function {self.name!r} {what} (layer {given.layer})")


class RoutingFunctions:
    """The functions that a model's routes pass through, in order of registration.

    Args:
        shape: the model's layers of experts; None for a model without any.
        refused: why functions cannot be used with it; "" where they can.
    """

    def __init__(self, shape: MoeShape | None, refused: str = "") -> None:
        self.shape = shape
        self.refused = refused or ("this model has no experts" if shape is None or not shape.layers else shape.fixed)
        self._functions: list[RoutingFunction] = []
        self._registered = 0

    def __bool__(self) -> bool:
        return bool(self._functions)

    def __iter__(self) -> Any:
        return iter(self._functions)

    @property
    def key(self) -> str:
        """What of them changes routes: their identities, in order."""
        return ",".join(function.identity for function in self._functions)

    def register(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        pure: bool | None = None,
        version: str | None = None,
        signature: Signature | None = None,
    ) -> str:
        """Add a function behind those that are there.

        Args:
            name: for errors and logs; the function's own by default.
            pure: it makes of each token what it would make of it alone; its attribute `pure` by default, or True.
            version: what tells this function from others of its name; its attribute `version` by default, or a hash of
                its source.
            signature: "simple" or "full", where its parameters do not tell.

        Returns:
            the name.

        Raises:
            ConfigError: it cannot be called so, or the name is taken, or the model's routes cannot be changed.
        """
        if not callable(function):
            raise ConfigError(f"a routing function must be callable, got {function!r}")
        name = name or str(getattr(function, "__name__", type(function).__name__))
        if self.refused or self.shape is None:
            raise ConfigError(f"the routing function {name!r} cannot be used: {self.refused}")
        if any(known.name == name for known in self._functions):
            raise ConfigError(f"a routing function {name!r} is registered already: unregister it, or give another name")
        pure = bool(getattr(function, "pure", True)) if pure is None else pure
        version = version or getattr(function, "version", None)
        made = RoutingFunction(name, function, signature or signature_of(function, name), pure, "")
        if made.signature not in ("simple", "full"):
            raise ConfigError(f"signature of the routing function {name!r} must be simple or full, got {signature!r}")
        self._registered += 1  # what a function holds may differ where its source does not
        made.identity = f"{name}@{version or f'{source_hash(function)}#{self._registered}'}"
        if not pure:
            logger.warning(
                "the routing function %r looks across tokens (pure=False): a request's results may now depend on the "
                "requests that share its batch",
                name,
            )
        elif not _stands_alone(made, self.shape.layers[0]):
            made.by_row = True
            logger.warning(
                "the routing function %r makes something else of a token alone than among others, so it is called for "
                "one token at a time, which is slow; if it is to look across tokens, register it with pure=False",
                name,
            )
        self._functions.append(made)
        logger.info("routing function %s, %s", made.identity, made.signature)
        return name

    def unregister(self, name: str) -> None:
        """Take a function out; raises ConfigError for an unknown name."""
        found = [function for function in self._functions if function.name == name]
        if not found:
            raise ConfigError(unknown_name("routing function", name, [f.name for f in self._functions]))
        self._functions.remove(found[0])

    def __call__(self, given: RoutingInput, look: Look | None = None, check_last: bool = True) -> RoutingDecision:
        """What all functions, one after the other, make of it; raises RoutingFunctionError.

        Args:
            look: checks what each has made; that of the last one later (`check`), where not `check_last`.
        """
        look = look or Look(route_changes)
        for function in self._functions[:-1]:
            made = function(given, look)
            given = replace(given, scores=made.scores, k=made.k)
        return self._functions[-1](given, look if check_last else None)

    def check(self, scores: Tensor, given: RoutingInput) -> None:
        """Raise RoutingFunctionError where the scores `[T, E]` that the last one made cannot be chosen by."""
        self._functions[-1].check(scores, given)


def _stands_alone(function: RoutingFunction, layer: LayerShape) -> bool:
    """Whether it makes of each token, to the last bit, what it makes of it alone: tried on random scores, with the
    texts in its code as tags. One that raises is taken for one that does: it will say so when it is used."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(PROBED_ROWS, layer.num_experts, generator=generator)
    code = getattr(function.function, "__code__", None)
    tags = [(), *((text,) for text in getattr(code, "co_consts", ()) if isinstance(text, str))]
    given = RoutingInput(
        layer=layer.index,
        logits=logits,
        scores=logits.softmax(-1),
        tags=DomainTags(tags, torch.arange(PROBED_ROWS) % len(tags)),
        positions=torch.arange(PROBED_ROWS),
        request_ids=RequestIds([("probe",)], torch.zeros(PROBED_ROWS, dtype=torch.int64)),
        k=torch.full((PROBED_ROWS,), layer.top_k),
    )
    quiet = replace(function)
    try:
        with torch.inference_mode():
            look = Look(route_changes)
            together = quiet(given, look)
            parts: Sequence[slice] = [slice(row, row + 1) for row in range(0, PROBED_ROWS, 4)] + [slice(5, 16)]
            return all(_same(quiet(given.of(part), look), together, part) for part in parts)
    except RoutingFunctionError:
        return True
    finally:
        function.seconds = 0.0


def _same(made: RoutingDecision, together: RoutingDecision, part: slice) -> bool:
    pairs = (made.scores, together.scores), (made.k, together.k)
    return all(torch.equal(cast(Tensor, own), cast(Tensor, whole)[part]) for own, whole in pairs)


def _kind(value: Any) -> str:
    """`a tensor [4, 64] of torch.float32`, `a list`."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
