"""The layer library: all that a hand-written model class is made of, in one place (docs/add-an-architecture.md)."""

from moesaic.experts.fused import FusedMoE
from moesaic.experts.routing import Router, Routing, StableRouter
from moesaic.layers.embedding import ParallelLMHead, VocabParallelEmbedding
from moesaic.layers.linear import (
    ActivatedLinear,
    ColumnParallelLinear,
    GatedLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from moesaic.layers.loading import default_weight_loader
from moesaic.layers.moe_paged_attention import MoEPagedAttention
from moesaic.layers.norm import RMSNorm
from moesaic.layers.paged_attention import Attention, SparseAttention
from moesaic.layers.rotary import RotaryEmbedding, get_rope

__all__ = [
    "ActivatedLinear",
    "Attention",
    "ColumnParallelLinear",
    "FusedMoE",
    "GatedLinear",
    "MergedColumnParallelLinear",
    "MoEPagedAttention",
    "ParallelLMHead",
    "QKVParallelLinear",
    "RMSNorm",
    "ReplicatedLinear",
    "RotaryEmbedding",
    "Router",
    "Routing",
    "RowParallelLinear",
    "SparseAttention",
    "StableRouter",
    "VocabParallelEmbedding",
    "default_weight_loader",
    "get_rope",
]
