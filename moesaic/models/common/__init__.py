"""What architectures share: the pieces of a spec that most configs name alike, and rules for the usual tensor names."""

from moesaic.models.common.attention import gqa
from moesaic.models.common.feed_forward import ACTIVATIONS, activation, deepseek_moe, shared_experts
from moesaic.models.common.latent import mla
from moesaic.models.common.layers import (
    NEUTRAL,
    decoder,
    for_each_layer,
    kinds_and_windows,
    kinds_of_layers,
    num_layers,
    overrides_of_layers,
    scaled,
    windows,
)
from moesaic.models.common.multimodal import language_model
from moesaic.models.common.positions import rope, ropes, ropes_as_given
from moesaic.models.common.recurrent import (
    GATED_DELTA_RULES,
    delta_or_attention,
    experts_and_gated_one,
    gated_query_rules,
)
from moesaic.models.common.rules import (
    BASE_RULES,
    BLOCK_EXPERT_RULES,
    CORRECTION_RULES,
    DECODER_RULES,
    DEEPSEEK_RULES,
    DENSE_RULES,
    LATENT_DEEPSEEK_RULES,
    LATENT_RULES,
    MLP,
    MLP_EXPERT_RULES,
    SANDWICH_RULES,
    SHARED_RULES,
    feed_forward,
    text_only,
    under,
)

__all__ = [
    "ACTIVATIONS",
    "BASE_RULES",
    "BLOCK_EXPERT_RULES",
    "CORRECTION_RULES",
    "DECODER_RULES",
    "DEEPSEEK_RULES",
    "DENSE_RULES",
    "GATED_DELTA_RULES",
    "LATENT_DEEPSEEK_RULES",
    "LATENT_RULES",
    "MLP",
    "MLP_EXPERT_RULES",
    "NEUTRAL",
    "SANDWICH_RULES",
    "SHARED_RULES",
    "activation",
    "decoder",
    "deepseek_moe",
    "delta_or_attention",
    "experts_and_gated_one",
    "feed_forward",
    "for_each_layer",
    "gated_query_rules",
    "gqa",
    "kinds_and_windows",
    "kinds_of_layers",
    "language_model",
    "mla",
    "num_layers",
    "overrides_of_layers",
    "rope",
    "ropes",
    "ropes_as_given",
    "scaled",
    "shared_experts",
    "text_only",
    "under",
    "windows",
]
