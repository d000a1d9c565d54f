"""Feed-forwards from the usual keys."""

from moesaic.core.errors import UnsupportedError, unknown_name
from moesaic.models.config_reader import ConfigReader
from moesaic.models.spec import (
    Activation,
    DenseSpec,
    MoESpec,
    RouterSpec,
    SharedSpec,
)

ACTIVATIONS: dict[str, Activation] = {  # as transformers calls them
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def activation(c: ConfigReader, key: str = "hidden_act", absent: str = "silu") -> Activation:
    """The activation of feed-forwards and experts. Raises UnsupportedError for one that there is not."""
    name = c.read(str, key, absent=absent)
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"{c.path}: {unknown_name(key, name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def shared_experts(size: int, count: int, act: Activation = "silu", bias: bool = False) -> SharedSpec | None:
    """So many shared experts of a size, as one feed-forward; none where there is none."""
    return SharedSpec(ffn=DenseSpec(intermediate_size=size * count, activation=act, bias=bias)) if count else None


def some_dense(c: ConfigReader, moe: MoESpec) -> list[DenseSpec | MoESpec]:
    """Each layer's feed-forward: dense in those of mlp_only_layers, and but for every decoder_sparse_step-th."""
    c.ignore("intermediate_size")  # read where a layer is dense
    step = c.positive("decoder_sparse_step", absent=1)
    dense = c.read(list | None, "mlp_only_layers", absent=None) or []

    def ffn(layer: int) -> DenseSpec | MoESpec:
        if layer not in dense and (layer + 1) % step == 0:
            return moe
        return DenseSpec(intermediate_size=c.require(int, "intermediate_size"), activation=moe.activation)

    return [ffn(layer) for layer in range(int(c.require(int, "num_hidden_layers")))]


def deepseek_moe(
    c: ConfigReader,
    *,
    experts: str = "n_routed_experts",
    shared: str = "n_shared_experts",
    num_shared: int = 1,
    scale: float = 1.0,
    renormalize: bool = True,
) -> MoESpec:
    """DeepSeek-V3's experts (2024, section 2.1.2), which many have taken over: shared ones of the same size, and others
    chosen by sigmoids, with a correction for the choice alone, among the groups whose two best are best.

    Args:
        experts, shared: what the config calls their numbers.
        num_shared, scale, renormalize: for a config that says nothing.
    """
    c.ignore("aux_loss_alpha", "seq_aux", "ep_size", "pretraining_tp")  # of training, and of parallel ranks
    c.refuse_unless("scoring_func", "sigmoid", "noaux_tc")  # the second names the method of choice
    c.refuse_unless("topk_method", "noaux_tc")
    size, act = c.require(int, "moe_intermediate_size"), activation(c)
    router = RouterSpec(
        top_k=c.require(int, "num_experts_per_tok"),
        scoring="sigmoid",
        correction=True,
        num_groups=c.read(int | None, "n_group", absent=1) or 1,
        top_groups=c.read(int | None, "topk_group", absent=1) or 1,
        renormalize=c.read(bool, "norm_topk_prob", absent=renormalize),
        epsilon=1e-20,
        scale=c.read(float, "routed_scaling_factor", absent=scale),
    )
    return MoESpec(
        num_experts=c.require(int, experts, "num_local_experts"),
        intermediate_size=size,
        router=router,
        activation=act,
        shared=shared_experts(size, c.read(int | None, shared, absent=num_shared) or 0, act),
    )
