"""The parameters of feed-forward layers: dense ones, experts and their routers. Torch-free."""

from collections.abc import Iterator

from moesaic.models.parameters.kept import Kept, Vector, linear, merged, norm_weights, whole
from moesaic.models.spec import DenseSpec, MoESpec, NormSpec, RouterSpec


def moe(at: str, spec: MoESpec, hidden: int, norm: NormSpec) -> Iterator[Kept]:
    """Experts, their router, and what stands beside them."""
    yield from router(f"{at}.router", spec.router, spec.num_choices, hidden)
    yield from experts(f"{at}.experts", spec, spec.width(hidden))
    if spec.latent_size is not None:
        yield whole(f"{at}.latent_in", spec.latent_size, hidden)
        yield whole(f"{at}.latent_out", hidden, spec.latent_size)
    if spec.output_bias:
        yield Vector(f"{at}.output_bias.weight", (hidden,))
    if spec.shared is not None:
        yield from dense(f"{at}.shared", spec.shared.ffn, hidden)
        if spec.shared.gate:
            yield whole(f"{at}.shared_gate", 1, hidden)
    if spec.norms == "own":
        for part in ("router", "input", "output", "shared"):
            yield from norm_weights(f"{at}.{part}_norm", norm, hidden)


def router(at: str, spec: RouterSpec, choices: int, hidden: int) -> Iterator[Kept]:
    """What scores `choices` experts."""
    yield from linear(at, choices, hidden, spec.bias)
    if spec.correction:
        yield Vector(f"{at}.correction", (choices,))
    if spec.expert_scale:
        yield Vector(f"{at}.expert_scale", (choices,))


def experts(at: str, spec: MoESpec, width: int) -> Iterator[Kept]:
    """All experts of a layer, whose inputs have `width` numbers."""
    for expert in range(spec.num_experts):
        yield from dense(f"{at}.{expert}", spec.expert, width)


def dense(at: str, spec: DenseSpec, hidden: int) -> Iterator[Kept]:
    """A feed-forward network: dense, or one expert."""
    size = spec.intermediate_size
    yield from merged(at, {"gate": size, "up": size} if spec.gated else {"up": size}, hidden, spec.bias, spec.gated)
    yield from linear(f"{at}.down", hidden, size, spec.bias)
