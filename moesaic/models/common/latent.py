"""Latent attention from the usual keys."""

from typing import Any

from moesaic.models.common.positions import DEFAULT_THETA, rope
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import IndexerSpec, LatentAttentionSpec, QueryTemperature, YarnScaling

SIZES = {"latent_dim": "kv_lora_rank", "key_dim": "qk_nope_head_dim", "rope_dim": "qk_rope_head_dim"}


def mla(
    c: ConfigReader,
    *,
    theta: float = DEFAULT_THETA,
    interleaved: bool | None = None,
    tuned: bool = False,
    **more: Any,
) -> LatentAttentionSpec:
    """DeepSeek's latent attention, which many have taken over.

    Args:
        theta: of the rotary positions, for a config that names none.
        interleaved: whether neighbours are turned against each other; None for the config's rope_interleave.
        tuned: whether queries have a temperature, of which rope_parameters says what it is.
        more: fields of LatentAttentionSpec.
    """
    heads = c.require(int, "num_attention_heads")
    c.refuse_unless("num_key_value_heads", heads, None)
    sizes = {field: c.require(int, key) for field, key in SIZES.items()}
    c.ignore("head_dim")  # has been that of the part that rotates, and other things
    if interleaved is None:
        interleaved = c.read(bool | None, "rope_interleave", absent=True)
    whole, rotating = sizes["key_dim"] + sizes["rope_dim"], sizes["rope_dim"]
    c.refuse_unless("qk_head_dim", whole, None)
    r = c.child("rope_parameters", "rope_scaling")
    temperature = _temperature(r) if tuned else None
    if tuned:  # rope_parameters says how large a part of a whole head rotates
        positions = rope(c, whole, theta, rotating / whole, interleaved=bool(interleaved), reader=r)
        if positions.dim != rotating:
            raise r.error("partial_rotary_factor", f"{rotating} of a head's {whole} numbers rotate")
    else:
        positions = rope(c, rotating, theta, interleaved=bool(interleaved), reader=r)
    stretched = positions.scaling.score_factor if isinstance(positions.scaling, YarnScaling) else 1.0
    bias = c.read(bool, "attention_bias", absent=False)
    return LatentAttentionSpec(
        num_heads=heads,
        value_dim=c.require(int, "v_head_dim"),
        scale=whole**-0.5 * stretched,
        rope=positions,
        temperature=temperature,
        query_rank=c.read(int | None, "q_lora_rank", absent=None),
        bias=bias,
        output_bias=bias,
        **sizes,
        **more,
    )


def _temperature(r: ConfigReader) -> QueryTemperature | None:
    """Of queries, as rope_parameters has it."""
    r.ignore("max_position_embeddings")  # said twice
    beta = r.read(float | None, "llama_4_scaling_beta", absent=None)
    return QueryTemperature(scale=beta, period=r.require(int, "original_max_position_embeddings")) if beta else None


def indexer(c: ConfigReader, *, num_heads: int, interleaved: bool = False) -> IndexerSpec:
    """DeepSeek-V3.2's indexer.

    Args:
        num_heads: for a config that says nothing.
        interleaved: whether neighbours are turned against each other.
    """
    return IndexerSpec(
        num_heads=c.read(int, "index_n_heads", absent=num_heads),
        head_dim=c.read(int, "index_head_dim", absent=128),
        top_k=c.read(int, "index_topk", absent=2048),
        interleaved=interleaved,
    )
