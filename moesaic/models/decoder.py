"""The one decoder: built from a spec, run on a batch. What a model computes is in its spec; here is only how."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesaic.core.batch import Batch
from moesaic.experts.layer import MoE
from moesaic.experts.stats import ExpertStats
from moesaic.layers.attention import Attention
from moesaic.layers.base import BuildContext, Layer
from moesaic.layers.embedding import Embedding, LMHead
from moesaic.layers.kv_cache import KVCache, KVCacheSpec
from moesaic.layers.mlp import MLP
from moesaic.layers.norm import RMSNorm
from moesaic.layers.step import Step
from moesaic.models.spec import LayerSpec, ModelSpec, MoESpec


class Decoder(Layer):
    """A decoder-only language model over paged caches; its parameters are unfilled until they are loaded.

    Attributes:
        expert_stats: tokens routed to each expert of each layer since the start.
    """

    def __init__(self, spec: ModelSpec, ctx: BuildContext) -> None:
        super().__init__()
        self.spec = spec
        most_experts = max((la.ffn.num_experts for la in spec.layers if isinstance(la.ffn, MoESpec)), default=0)
        self.expert_stats = ExpertStats(len(spec.layers), most_experts, ctx.device)
        self.embed = Embedding(ctx, spec.vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(ctx, spec, layer, index, self.expert_stats) for index, layer in enumerate(spec.layers)
        )
        self.norm = RMSNorm(ctx, spec.hidden_size, spec.norm_eps)
        self.lm_head = LMHead(ctx, spec.vocab_size, spec.hidden_size, self.embed if spec.tied_embeddings else None)

    @torch.inference_mode()
    def forward(self, batch: Batch, caches: Sequence[KVCache]) -> Tensor:
        """The final hidden states `[T, hidden]` of the batch's tokens, normed.

        Args:
            caches: one a layer, as `cache_specs` describes them; the step's keys and values are written into them.
        """
        step = Step(batch)
        hidden = self.embed(batch.token_ids)
        if self.spec.multipliers.embedding != 1.0:
            hidden = hidden * self.spec.multipliers.embedding
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(hidden, step, cache)
        return self.norm(hidden)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """`[N, hidden]` -> `[N, vocab]` float32."""
        logits: Tensor = self.lm_head(hidden)
        return logits if self.spec.multipliers.logits == 1.0 else logits * self.spec.multipliers.logits

    def cache_specs(self) -> list[KVCacheSpec]:
        """What each layer keeps of a token, in order."""
        return [layer.attention.cache_spec for layer in self.layers]


class DecoderLayer(Layer):
    """norm → attention → norm → feed-forward, each pair around a residual."""

    def __init__(self, ctx: BuildContext, model: ModelSpec, spec: LayerSpec, index: int, stats: ExpertStats) -> None:
        super().__init__()
        self.residual_multiplier = model.multipliers.residual
        self.attention_norm = RMSNorm(ctx, model.hidden_size, model.norm_eps)
        self.attention = Attention(ctx, spec.attention, model.hidden_size, model.norm_eps)
        self.ffn_norm = RMSNorm(ctx, model.hidden_size, model.norm_eps)
        if isinstance(spec.ffn, MoESpec):
            self.mlp: Layer = MoE(ctx, spec.ffn, model.hidden_size, index, stats)
        else:
            self.mlp = MLP(ctx, spec.ffn, model.hidden_size)

    def forward(self, hidden: Tensor, step: Step, cache: KVCache) -> Tensor:
        """`[T, hidden]` -> `[T, hidden]`."""
        alpha = self.residual_multiplier
        attended = self.attention(self.attention_norm(hidden), step, cache)
        hidden = torch.add(hidden, attended, alpha=alpha)
        return torch.add(hidden, self.mlp(self.ffn_norm(hidden)), alpha=alpha)
