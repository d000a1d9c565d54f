"""EXAONE MoE: only sliding layers rotate; queries and keys normed per head; DeepSeek-V3's router and shared expert."""

from dataclasses import replace

from moesaic.models.common import DEEPSEEK_RULES, activation, decoder, deepseek_moe, gqa, kinds_of_layers, windows
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import DenseSpec, LayerSpec, ModelSpec
from moesaic.weights.rules import ignore

ARCHITECTURE = "ExaoneMoeForCausalLM"
MODEL_TYPE = "exaone_moe"


def spec(c: ConfigReader) -> ModelSpec:
    """What the model computes."""
    window = c.read(int | None, "sliding_window", absent=4096)
    period = c.read(int | None, "sliding_window_pattern", absent=4)
    attention = gqa(c, num_kv_heads=32, qk_norm="head")
    moe = deepseek_moe(c, experts="num_experts", shared="num_shared_experts", num_shared=1, scale=2.5)
    dense = DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=activation(c))
    first = c.read(int, "first_k_dense_replace", absent=1)
    kinds = kinds_of_layers(c, "mlp_layer_types", ("dense", "sparse"), lambda i: "dense" if i < first else "sparse")
    sizes = windows(c, window, sliding=lambda layer: bool(window and period and (layer + 1) % period))
    return decoder(
        c,
        [
            LayerSpec(
                attention=replace(attention, window=size, rope=attention.rope if size or not window else None),
                ffn=dense if kind == "dense" else moe,
            )
            for size, kind in zip(sizes, kinds, strict=True)
        ],
    )


RULES = [*DEEPSEEK_RULES, ignore("mtp.{any}", "layers for speculation")]
