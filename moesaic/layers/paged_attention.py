"""Attention of a hand-written model: queries, keys and values in, over the paged cache of the step that runs."""

from torch import Tensor

from moesaic.core.errors import ConfigError
from moesaic.layers.base import Layer
from moesaic.layers.context import context_of, current_construction, current_running
from moesaic.layers.kv_cache import KVCacheSpec


class Attention(Layer):
    """Causal attention to all of a sequence's tokens so far, its cache found by its prefix.

    Args:
        num_heads: of queries.
        head_size: of queries, keys and values.
        scale: of the scores, before the softmax; positional, as in vLLM.
        num_kv_heads: None for as many as query heads.
        logits_soft_cap: scores become `cap * tanh(score / cap)`.
        per_layer_sliding_window: a token sees this many tokens, itself included; None for all before it. Every layer
            keeps the keys and values of all tokens, so that prefix caching holds; the window is the kernel's.
        prefix: of this layer; no two attentions of a model have the same.

    Raises:
        ConfigError: there is no prefix, or another attention has it; or heads do not divide.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        *,
        logits_soft_cap: float | None = None,
        per_layer_sliding_window: int | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        _check(prefix, num_heads, num_kv_heads, per_layer_sliding_window)
        construction = current_construction()
        ctx = context_of(self, None, prefix, plain=True)
        construction.attentions[prefix] = self
        construction.ask("attention", **self.needs(num_heads, num_kv_heads, head_size))
        self.prefix = prefix
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size
        self.scale, self.softcap, self.window = scale, logits_soft_cap, per_layer_sliding_window
        self.cache_spec = KVCacheSpec(
            num_kv_heads, head_size, ctx.kv_dtype or ctx.dtype, tiled=ctx.backends["attention"] == "cpu"
        )
        self._prepare_qkv = ctx.kernel("prepare_qkv")
        self._plan = ctx.kernel("plan_attention")
        self._attend = ctx.kernel("paged_attention")

    def needs(self, num_heads: int, num_kv_heads: int, head_size: int) -> dict[str, int]:
        """What is asked of the kernels."""
        return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_size}

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each token attends to; the step's keys and values are written into the cache.

        Args:
            query: `[T, heads * D]` (or `[T, heads, D]`), rotated if positions are to show; key and value likewise, of
                the KV heads. All may be columns of one projection.

        Returns:
            `[T, heads * D]`.

        Raises:
            ConfigError: no step is running.
        """
        running = current_running()
        step, cache = running.step, running.caches[self.prefix]
        parts = tuple(part.flatten(1) if part.dim() == 3 else part for part in (query, key, value))
        queries = self._prepare_qkv(parts, self.num_heads, self.num_kv_heads, None, step.batch.slots, cache)
        plan = step.attention_plan(self._plan, cache, self.window)
        mixed: Tensor = self._attend(queries, cache, plan, self.scale, softcap=self.softcap, **self.options())
        return mixed.view(-1, self.num_heads * self.head_size)

    def options(self) -> dict[str, int]:
        """Of the kernel, besides the usual ones."""
        return {}


class SparseAttention(Attention):
    """Each query attends to those `top_k` of the tokens before it (itself included) whose scores are highest, head by
    head; among equal scores the earlier token. Exact: all scores are computed, and a softmax runs over the chosen.

    Args:
        top_k: keys of a query and head; where a sequence has no more, this is full attention.
        more: as `Attention` takes them.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        *,
        top_k: int,
        logits_soft_cap: float | None = None,
        per_layer_sliding_window: int | None = None,
        prefix: str = "",
    ) -> None:
        if top_k < 1:
            raise ConfigError(f"{prefix}: top_k must be at least 1, got {top_k}")
        self._top_k = top_k
        super().__init__(
            num_heads,
            head_size,
            scale,
            num_kv_heads,
            logits_soft_cap=logits_soft_cap,
            per_layer_sliding_window=per_layer_sliding_window,
            prefix=prefix,
        )

    def needs(self, num_heads: int, num_kv_heads: int, head_size: int) -> dict[str, int]:
        return {**super().needs(num_heads, num_kv_heads, head_size), "top_k": self._top_k}

    def options(self) -> dict[str, int]:
        return {"top_k": self._top_k}


def _check(prefix: str, num_heads: int, num_kv_heads: int, window: int | None) -> None:
    if not prefix:
        raise ConfigError("an attention needs a prefix, by which its cache is found")
    if num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ConfigError(f"{prefix}: {num_heads} heads of queries do not share {num_kv_heads} KV heads evenly")
    if window is not None and window < 1:
        raise ConfigError(f"{prefix}: per_layer_sliding_window must be at least 1, got {window}")
