"""GLM-5: DeepSeek-V3.2's layers; some take the positions that the indexer of a layer before has chosen."""

from dataclasses import replace

from moesaic.models.common import (
    INDEXER_RULES,
    LATENT_DEEPSEEK_RULES,
    activation,
    decoder,
    deepseek_moe,
    indexer,
    kinds_of_layers,
    mla,
    num_layers,
)
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LatentAttentionSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "GlmMoeDsaForCausalLM"
MODEL_TYPE = "glm_moe_dsa"

KINDS = {"full": "own", "shared": "last"}


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    c.ignore("num_nextn_predict_layers", "num_mtp_layers")  # layers for speculation, which plain decoding leaves out
    c.refuse_unless("layer_types", ["indexed_attention"] * num_layers(c), None)
    c.refuse_unless("moe_layer_freq", 1)
    c.refuse_unless("mlp_bias", False)
    c.refuse_unless("rope_interleave", True)
    c.refuse_unless("indexer_rope_interleave", True)
    attention = _attention(c)
    moe = deepseek_moe(c, scale=2.5)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=3)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < first else "sparse")
    ffns = [dense if kind == "dense" else moe for kind in kinds]
    return decoder(c, [LayerSpec(attention=a, ffn=ffn) for a, ffn in zip(attention, ffns, strict=True)])


def _attention(c: ConfigReader) -> list[LatentAttentionSpec]:
    """That of each layer."""
    every, offset = c.read(int, "index_topk_freq", absent=1), c.read(int, "index_skip_topk_offset", absent=2)
    pattern = c.read(str | list | None, "index_topk_pattern", absent=None)
    names = {"F": "full", "S": "shared"}

    def kind(layer: int) -> str:
        if pattern is not None:
            return str(names.get(pattern[layer], pattern[layer])) if layer < len(pattern) else "missing"
        return "shared" if max(layer - offset + 1, 0) % max(every, 1) else "full"

    kinds = kinds_of_layers(c, "indexer_types", tuple(KINDS), kind)
    if kinds[0] != "full":
        raise c.error("indexer_types", "the first layer has none before it whose choice it could share")
    scorer = indexer(c, num_heads=32, interleaved=True)
    plain = mla(c, interleaved=True)
    return [replace(plain, indexer=replace(scorer, source=KINDS[kind])) for kind in kinds]


RULES = [
    *LATENT_DEEPSEEK_RULES,
    *INDEXER_RULES,
    ignore("model.layers.78.{any}", "a layer for speculation, of released models"),
]
