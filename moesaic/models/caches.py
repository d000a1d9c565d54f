"""What a model keeps of tokens and of sequences, from its spec alone. Torch-free."""

from dataclasses import dataclass

from moesaic.kernels.layouts import KVLayout, matrix_state, state_bytes
from moesaic.models.spec import (
    AttentionSpec,
    ExpertAttentionSpec,
    ExpertPagedAttentionSpec,
    GatedDeltaSpec,
    LatentAttentionSpec,
    LinearAttentionSpec,
    Mamba2Spec,
    MambaSpec,
    MixerSpec,
    ModelSpec,
)

BLOCK = 16  # tokens of a block of the cache, where nobody asks for another size


@dataclass(frozen=True)
class Kept:
    """What one layer keeps.

    Attributes:
        layouts: of each token, with how many copies of it a block takes and, of blocks, a running sequence beside.
        state: bytes of a sequence, whatever its length.
    """

    layouts: tuple[tuple[KVLayout, int, int], ...] = ()
    state: int = 0


def kept_by(mixer: MixerSpec | None, hidden_size: int) -> Kept:
    """What a layer with this mixer keeps."""
    if mixer is None:
        return Kept()
    if isinstance(mixer, AttentionSpec):
        return Kept(((KVLayout(mixer.num_kv_heads, mixer.head_dim, mixer.value_dim), 1, 0),))
    if isinstance(mixer, ExpertAttentionSpec):
        return Kept(((KVLayout(mixer.num_kv_heads, mixer.head_dim), 1, 0),))
    if isinstance(mixer, ExpertPagedAttentionSpec):  # each choice has blocks of its own, the last of them full in part
        spare = mixer.num_experts - 1 if mixer.router.top_k < mixer.num_experts else 0
        return Kept(((KVLayout(mixer.num_kv_heads, mixer.head_dim), mixer.router.top_k, spare),))
    if isinstance(mixer, LatentAttentionSpec):
        latent = KVLayout(1, mixer.cached_dim, mixer.latent_dim, latent=True, by_token=mixer.indexer is not None)
        if mixer.indexer is None or mixer.indexer.source != "own":
            return Kept(((latent, 1, 0),))
        return Kept(((latent, 1, 0), (KVLayout(1, mixer.indexer.head_dim, 0, latent=True), 1, 0)))
    return Kept(state=_state(mixer, hidden_size))


def _state(mixer: MixerSpec, hidden_size: int) -> int:
    if isinstance(mixer, GatedDeltaSpec):
        conv = (mixer.conv_width - 1, 2 * mixer.key_size + mixer.value_size)
        return state_bytes(conv, matrix_state(mixer.num_heads, mixer.key_dim, mixer.value_dim))
    if isinstance(mixer, LinearAttentionSpec):
        return state_bytes(matrix_state(mixer.num_heads, mixer.head_dim, mixer.head_dim))
    if isinstance(mixer, Mamba2Spec):
        conv = (mixer.conv_width - 1, mixer.inner_size + 2 * mixer.group_size)
        return state_bytes(conv, matrix_state(mixer.num_heads, mixer.state_size, mixer.head_dim))
    if isinstance(mixer, MambaSpec):
        conv = (mixer.conv_width - 1, mixer.inner_size)
        return state_bytes(conv, matrix_state(1, mixer.state_size, mixer.inner_size))
    return state_bytes((mixer.width - 1, hidden_size))  # type: ignore[union-attr]


def bytes_per_block(spec: ModelSpec, dtype: str, block_size: int = BLOCK) -> int:
    """Of keys and values in all layers, for a block of so many tokens, in this dtype on the CPU kernels."""
    kept = (kept_by(layer.attention, spec.hidden_size) for layer in spec.layers)
    return sum(copies * kv.bytes_per_block(block_size, dtype) for k in kept for kv, copies, _ in k.layouts)


def bytes_per_sequence(spec: ModelSpec, dtype: str, block_size: int = BLOCK) -> int:
    """Of what a running sequence has at any length: recurrent state, spare blocks of experts' own attention."""
    kept = [kept_by(layer.attention, spec.hidden_size) for layer in spec.layers]
    spare = sum(blocks * kv.bytes_per_block(block_size, dtype) for k in kept for kv, _, blocks in k.layouts)
    return spare + sum(k.state for k in kept)
