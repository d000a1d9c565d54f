"""The one decoder: built from a spec, run on a batch. What a model computes is in its spec; here is only how."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.experts.layer import MoE
from moesaic.experts.normed import NormedMoE
from moesaic.experts.stats import ExpertStats
from moesaic.experts.steering import Steering
from moesaic.layers.base import BuildContext, Layer, NamedViews
from moesaic.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from moesaic.layers.kv_cache import Cache, CacheSpec
from moesaic.layers.mlp import MLP
from moesaic.layers.norm import Norm
from moesaic.layers.step import Step
from moesaic.models.language_model import LanguageModel
from moesaic.models.mixers import build_mixer
from moesaic.models.spec import (
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    LayerSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
)

EXPERT_ATTENTION = (ExpertAttentionSpec, ExpertPagedAttentionSpec)


class Decoder(LanguageModel):
    """A decoder-only language model over paged caches; its parameters are unfilled until they are loaded.

    Attributes:
        expert_stats: tokens routed to each expert of each layer since the start.
    """

    def __init__(self, spec: ModelSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.spec = spec
        self.expert_stats = _stats_of(spec, ctx.device)
        self.embed = VocabParallelEmbedding(spec.vocab_size, spec.hidden_size, ctx=ctx.under("embed"))
        layers = [
            DecoderLayer(ctx.under(f"layers.{index}"), spec, layer, index, self.expert_stats)
            for index, layer in enumerate(spec.layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.steering = _steering_of(layers, ctx.device)
        ends = list(accumulate(len(layer.cache_specs) for layer in layers))
        self._caches_of = [slice(end - len(la.cache_specs), end) for la, end in zip(layers, ends, strict=True)]
        self._num_own = ends[-1]
        self.positions = (
            VocabParallelEmbedding(spec.max_position_embeddings, spec.hidden_size, ctx=ctx.under("positions"))
            if spec.learned_positions
            else None
        )
        self.norm = Norm(ctx, _of_stream(spec, spec.norm, 2 * len(spec.layers)), spec.hidden_size)
        self._mix, self._softcap = ctx.kernel("mix"), ctx.kernel("softcap")
        self._gather_rows = ctx.kernel("gather_rows")
        tied = self.embed if spec.tied_embeddings else None
        self.lm_head = ParallelLMHead(
            spec.vocab_size, spec.hidden_size, bias=spec.logits_bias, tied=tied, ctx=ctx.under("lm_head")
        )
        self.completed()

    @torch.inference_mode()
    def forward(self, batch: Batch, caches: Sequence[Cache]) -> Tensor:
        """The final hidden states `[T, hidden]` of the batch's tokens, normed.

        Args:
            caches: as `cache_specs` describes them; the step's keys, values and states are written into them.
        """
        step = Step(batch)
        self.pools.lend(caches[self._num_own :])
        alpha = self.spec.multipliers.residual
        hidden, delta = self.embed(batch.token_ids, self.spec.multipliers.embedding), None
        if self.positions is not None:
            hidden = self._mix(hidden, self.positions(batch.positions))
        for layer, own in zip(self.layers, self._caches_of, strict=True):
            hidden, delta = layer(hidden, delta, step, caches[own])
        return self.norm.add(hidden, delta, alpha)[1]

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """`[T, hidden]` -> `[N, vocab]` float32, of the given `rows` `[N]` or of all."""
        if rows is not None and rows.shape[0] < hidden.shape[0]:
            hidden = self._gather_rows(hidden, rows)
        logits: Tensor = self.lm_head(hidden, self.spec.multipliers.logits)
        if self.spec.logits_softcap is not None:
            logits = self._softcap(logits, self.spec.logits_softcap)
        return logits

    def cache_specs(self) -> list[CacheSpec]:
        """What the layers keep of tokens and of sequences, layer after layer, then the pools of experts."""
        return [*(spec for layer in self.layers for spec in layer.cache_specs), *self.pools.cache_specs()]


class DecoderLayer(Layer):
    """Attention and feed-forward, each added to the residual stream, with norms where the spec has them.

    The norms are called after where they stand: `attention_norm` before attention, `attention_post_norm` on what it
    gives, and so on; with "parallel" norms, `attention_norm` serves both.
    """

    def __init__(self, ctx: BuildContext, model: ModelSpec, spec: LayerSpec, index: int, stats: ExpertStats) -> None:
        super().__init__()
        self.norms = spec.norms
        self.attention_shares, self.ffn_shares = spec.attention_shares, spec.ffn_shares
        self.residual_multiplier = model.multipliers.residual

        def norm(part: object, *kinds: str, parts_before: int = 0) -> Norm | None:
            wanted = part is not None and spec.norms in kinds
            norm_spec = _of_stream(model, spec.norm or model.norm, parts_before)
            return Norm(ctx, norm_spec, model.hidden_size) if wanted else None

        self.attention_norm = norm(
            spec.attention, "pre", "sandwich", "ffn_sandwich", "parallel", "residual", parts_before=2 * index
        )
        self.attention: Layer | None = None
        self.cache_specs: list[CacheSpec] = []
        if spec.attention is not None:
            self.attention = build_mixer(ctx.under("attention"), spec.attention, model.hidden_size, model.norm)
            self.cache_specs = self.attention.cache_specs
        self.attention_post_norm = norm(spec.attention, "post", "sandwich")
        before = 2 * index + 1
        self.ffn_norm = norm(spec.ffn, "pre", "sandwich", "ffn_sandwich", "residual", parts_before=before)
        self.gives_residual = isinstance(spec.ffn, MoESpec) and spec.ffn.norms == "own"
        self.mlp: Layer | None = None
        if isinstance(spec.ffn, MoESpec) and spec.ffn.norms == "own":
            norm_spec = spec.norm or model.norm
            self.mlp = NormedMoE(ctx.under("mlp"), spec.ffn, model.hidden_size, index, stats, norm_spec)
        elif isinstance(spec.ffn, MoESpec):
            self.mlp = MoE(ctx.under("mlp"), spec.ffn, model.hidden_size, index, stats)
        elif spec.ffn is not None:
            self.mlp = MLP(ctx.under("mlp"), spec.ffn, model.hidden_size)
        self.ffn_post_norm = norm(spec.ffn, "post", "sandwich", "ffn_sandwich")
        self.scalar = ctx.parameter(1) if spec.scalar else None
        self.shortcut: MoE | None = None
        if spec.shortcut is not None:
            self.shortcut = MoE(ctx.under("shortcut"), spec.shortcut, model.hidden_size, index, stats)
        if isinstance(spec.attention, EXPERT_ATTENTION):
            attention, router = spec.attention, self.attention.router  # type: ignore[union-attr]
            router.tap = stats.tap(index, attention.num_experts, attention.router.top_k, "attention")  # type: ignore[union-attr]
        self._mix = ctx.kernel("mix")

    def forward(
        self, hidden: Tensor, delta: Tensor | None, step: Step, caches: Sequence[Cache]
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream `[T, hidden]` and what is still to be added to it, from the last layer and for the next.

        Additions are left to the norm that follows them, for the two are one operation.
        """
        normed = hidden
        if self.attention is not None:
            hidden, normed = self._add(hidden, delta, self.attention_norm)
            delta = _normed(self.attention(normed, step, *caches), self.attention_post_norm)
        if self.mlp is None:
            return hidden, delta
        if self.norms == "parallel":
            return hidden, self._mix(delta, self.mlp(normed))
        if self.norms == "residual":
            normed = self._add(self._mix(normed, delta, *self.attention_shares), None, self.ffn_norm)[1]
            return self._mix(normed, self.mlp(normed), *self.ffn_shares), None
        hidden, normed = self._add(hidden, delta, self.ffn_norm)
        given = (normed, hidden) if self.gives_residual else (normed,)
        delta = _normed(self.mlp(*given), self.ffn_post_norm)
        if step.shortcut is not None:
            delta, step.shortcut = self._mix(delta, step.shortcut), None
        if self.shortcut is not None:
            step.shortcut = self.shortcut(normed)
        if self.scalar is None:
            return hidden, delta
        return self._mix(hidden, delta, self._factor, self._factor * self.residual_multiplier), None

    def named_views(self) -> NamedViews:
        yield from super().named_views()
        if self.scalar is not None:
            yield "scalar", self.scalar.data

    def loaded(self) -> None:
        if self.scalar is not None:
            self._factor = float(self.scalar)

    def _add(self, hidden: Tensor, delta: Tensor | None, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """The residual stream with `delta` added, and what the next part is given of it."""
        if norm is not None:
            return norm.add(hidden, delta, self.residual_multiplier)
        if delta is not None:
            hidden = self._mix(hidden, delta, 1.0, self.residual_multiplier)
        return hidden, hidden


def _stats_of(spec: ModelSpec, device: torch.device) -> ExpertStats:
    """A row for each layer, and one more for each layer's second router."""
    sizes = [la.moe.num_choices for la in spec.layers if la.moe is not None]
    attentions = [la for la in spec.layers if isinstance(la.attention, EXPERT_ATTENTION)]
    sizes += [la.attention.num_experts for la in attentions]  # type: ignore[union-attr]
    return ExpertStats(len(spec.layers), max(sizes, default=0), device, sum(la.moe is not None for la in attentions))


def _steering_of(layers: Sequence[DecoderLayer], device: torch.device) -> Steering:
    """Each layer of experts follows what requests ask of its routes; experts of attention have the model's alone."""
    steering = Steering(device)
    for index, layer in enumerate(layers):
        for moe in (layer.mlp, layer.shortcut):
            if isinstance(moe, MoE):
                moe.router.table = steering.table(index, moe.spec.num_choices, moe.spec.router.top_k)
                moe.router.stage = steering.custom.stage(index, moe.spec.router, moe.router.kernels)
    return steering


def _of_stream(model: ModelSpec, norm: NormSpec, parts: int) -> NormSpec:
    """A norm of the residual stream after so many parts were added to the embedding.

    The stream is kept as a plain sum. Where the model divides it by a root, a norm shows that in its epsilon alone,
    which counts beside the stream's square.
    """
    return replace(norm, eps=norm.eps * (parts + 1)) if model.residual == "root_mean" else norm


def _normed(x: Tensor, norm: Norm | None) -> Tensor:
    out: Tensor = x if norm is None else norm(x)
    return out
