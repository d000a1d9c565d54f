"""transformers' attention over our paged caches: a function that its `AttentionInterface` calls in every layer.

A step's sequences lie packed in one row `[1, T]`; the batch says which token is whose. Caches are found by the module
that asks, since not every architecture numbers its layers once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.core.errors import UnsupportedError
from moesaic.kernels.registry import Case, choose, module
from moesaic.layers.kv_cache import KVCache, KVCacheSpec
from moesaic.layers.step import Step
from moesaic.models.hf_backend import masks

NAME = "moesaic_paged"
# What models pass along that is no matter of attention over a cache, or that the batch says.
IGNORED = frozenset(
    (
        *("position_ids", "cache_position", "use_cache", "past_key_values", "past_key_value", "is_causal"),
        *("output_attentions", "output_hidden_states", "output_router_logits", "return_dict"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
    )
)


def register() -> None:
    """Make the function known to transformers; again does no harm."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, masks.describe)


class PagedAttention:
    """The attention layers of one model: in which order they come, what each keeps, and who computes them.

    Attributes:
        specs: of each layer's cache, in order; found by `learning` a first forward pass.
    """

    def __init__(self, device: torch.device, kv_dtype: torch.dtype, block_size: int, wanted: str) -> None:
        self._asked = (device, kv_dtype, block_size, wanted)
        self._kv_dtype = kv_dtype
        self._places: dict[int, int] = {}
        self.specs: list[KVCacheSpec] = []
        self._shapes: list[tuple[int, int, int, int]] = []
        self._step: Step | None = None
        self._caches: Sequence[KVCache] = ()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Forward passes in here make the layers known; their results mean nothing."""
        with _current(self):
            yield
        backend = self._backend()
        self._kernels = module(backend)
        self._wide = backend == "cpu"  # its activations are in float32
        self.specs = [
            KVCacheSpec(kv_heads, dim, self._kv_dtype, value_dim=value_dim, tiled=self._wide)
            for _, kv_heads, dim, value_dim in self._shapes
        ]

    def _backend(self) -> str:
        device, kv_dtype, block_size, wanted = self._asked
        names = ("num_heads", "num_kv_heads", "head_dim")
        options = dict.fromkeys(
            (("block_size", block_size), *zip(names, shape, strict=False)) for shape in self._shapes
        )
        return choose(
            [
                Case(
                    family="attention",
                    device=device.type,
                    activations="torch.float32",
                    weights=str(kv_dtype),
                    options=o,
                )
                for o in options
            ],
            wanted,
        )

    @contextmanager
    def running(self, batch: Batch, caches: Sequence[KVCache]) -> Iterator[None]:
        """A forward pass in here computes this batch over these caches."""
        self._step, self._caches = Step(batch), caches
        with _current(self):
            yield
        self._step, self._caches = None, ()

    def attend(
        self,
        layer: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: masks.Mask,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """`[1, heads, T, D]`, `[1, kv_heads, T, D]`, `[1, kv_heads, T, Dv]` -> `[1, T, heads, Dv]`."""
        if self._step is None:
            return self._learn(layer, query, key, value)
        cache = self._caches[self._places[id(layer)]]
        q, k, v = (self._rows(part) for part in (query, key, value))
        self._kernels.write_kv(cache, k, v, self._step.batch.slots)
        plan = self._step.attention_plan(self._kernels.plan_attention, cache, mask.window)
        sinks = None if sinks is None else sinks.detach().float().flatten()
        out: Tensor = self._kernels.paged_attention(q, cache, plan, scale, softcap=softcap, sinks=sinks)
        return out.to(query.dtype)[None]

    def _rows(self, heads: Tensor) -> Tensor:
        rows = heads[0].transpose(0, 1)
        return (rows.float() if self._wide else rows).contiguous()

    def _learn(self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if id(layer) in self._places:
            raise UnsupportedError(f"packed attention: {type(layer).__name__} attends twice in one forward pass")
        heads, kv_heads = query.shape[1], key.shape[1]
        if heads % kv_heads or value.shape[1] != kv_heads or key.shape[3] != query.shape[3]:
            shapes = [list(part.shape) for part in (query, key, value)]
            raise UnsupportedError(f"packed attention: {type(layer).__name__} has queries, keys and values {shapes}")
        self._places[id(layer)] = len(self._shapes)
        self._shapes.append((heads, kv_heads, query.shape[3], value.shape[3]))
        return query.new_zeros(1, query.shape[2], heads, value.shape[3])


_running: list[PagedAttention] = []


@contextmanager
def _current(attention: PagedAttention) -> Iterator[None]:
    _running.append(attention)
    try:
        yield
    finally:
        _running.pop()


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: `[1, heads, T, D]` each -> (`[1, T, heads, Dv]`, None).

    Raises:
        UnsupportedError: the layer asks for something that our kernels do not do, or would do without being told.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in IGNORED)
    if unknown or dropout:
        raise UnsupportedError(f"packed attention: {type(module).__name__} passes {', '.join(unknown) or 'dropout'}")
    mask = masks.mask_of(attention_mask)
    if sliding_window is not None and sliding_window != mask.window:
        name = type(module).__name__
        raise UnsupportedError(f"packed attention: {name} asks for a window of {sliding_window}, its mask for {mask}")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return _running[-1].attend(module, query, key, value, mask, scale, softcap, s_aux), None
