"""What the engine runs: a transformers model behind the face of our own decoder."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.log import get_logger
from moesaic.experts.steering import Steering
from moesaic.models.hf_backend.experts import is_experts, take_over
from moesaic.models.hf_backend.facts import ForeignSpec

log = get_logger(__name__)
FIXED = "transformers' own code computes this model and chooses its experts"


class ForeignModel:
    """The parts that both ways of running have in common: the split into hidden states and logits, and the experts.

    Attributes:
        expert_stats: tokens routed to each expert of each layer since the start, where transformers asks us for them.
        steering: never: transformers chooses the experts.
        replayable: never, what torch computes is not recorded.
    """

    replayable = False
    hooked = True

    def __init__(self, model: Any, spec: ForeignSpec, wanted: str) -> None:
        self.spec = spec
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self._base: nn.Module = getattr(model, model.base_model_prefix, None) or model.model
        self._compute = self._base.forward
        self._base.forward = self._given_or_computed  # type: ignore[method-assign]
        self._given: Any = None
        self._outputs: type | None = None
        self.expert_stats, left = take_over(model, self.device, wanted)
        self.steering = Steering(self.device, FIXED, self.expert_stats)
        self._mrope = _sections(model) is not None
        for line in left:
            log.info("experts by transformers' own code: %s", line)

    def _given_or_computed(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the base model's forward: while logits are made, the hidden states that they are made of."""
        return self._given if self._given is not None else self._compute(*args, **kwargs)

    def _hidden(self, token_ids: Tensor, positions: Tensor, **kwargs: Any) -> Any:
        """The base model's outputs for one row `[T]` of tokens."""
        ids = positions[None]
        output = self._base(
            input_ids=token_ids[None],
            position_ids=ids[None].expand(3, 1, -1) if self._mrope else ids,
            return_dict=True,
            **kwargs,
        )
        self._outputs = type(output)
        return output

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """`[T, hidden]` -> `[N, vocab]` float32, of the given `rows` `[N]` or of all."""
        assert self._outputs is not None, "logits are made of what forward gave"
        picked = hidden if rows is None else hidden[rows]
        self._given = self._outputs(last_hidden_state=picked[None])
        try:
            # The tokens themselves are not looked at: the base model does not compute.
            nothing = torch.zeros(1, len(picked), dtype=torch.int64, device=hidden.device)
            logits: Tensor = self.model(input_ids=nothing, use_cache=False, return_dict=True).logits
        finally:
            self._given = None
        return logits[0].float()

    def named_views(self) -> Iterator[tuple[str, Any]]:
        """transformers' parameters by their names; of those that our kernels keep packed, nothing is left there."""
        yield from self.model.named_parameters()

    def weight_bytes(self) -> int:
        """Memory of the weights, in the form in which they are kept."""
        plain = {p.data_ptr(): p.nbytes for p in self.model.parameters()}
        packed = sum(m.moesaic.packed_bytes for m in self.model.modules() if is_experts(m))
        return sum(plain.values()) + packed


def _sections(model: Any) -> Any:
    """How rotary dimensions are shared among time, height and width, where positions have these three."""
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    return rope.get("mrope_section") if isinstance(rope, dict) else None
