"""SparseAttention and windows of a hand-written model, against a definition in a few lines: each query's best keys."""

import json

import pytest
import torch
from torch import nn

from moesaic.library import Attention, QKVParallelLinear, SparseAttention, VocabParallelEmbedding
from moesaic.models.registry import ModelRegistry
from tests.out_of_tree import registrations  # noqa: F401
from tests.parity.driver import Driver, load, relative_difference

HEADS, KV_HEADS, DIM, VOCAB = 4, 2, 8, 32
SIZES = [HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM]
KINDS = {
    "full": {},
    "best 1": {"top_k": 1},
    "best 5": {"top_k": 5},
    "best 5 in a window": {"top_k": 5, "per_layer_sliding_window": 9},
    "best 7, capped": {"top_k": 7, "logits_soft_cap": 2.0},
    "more than there are": {"top_k": 1000},
    "a window": {"per_layer_sliding_window": 6},
}


class Bare(nn.Module):
    """Nothing but attention between embedding and logits, which are what it gives."""

    options: dict

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.embed = VocabParallelEmbedding(VOCAB, 16, prefix="embed")
        self.qkv = QKVParallelLinear(16, DIM, HEADS, KV_HEADS, prefix="layers.0.qkv")
        kind = SparseAttention if "top_k" in self.options else Attention
        self.attn = kind(HEADS, DIM, 0.5, KV_HEADS, prefix="layers.0.attn", **self.options)

    def get_input_embeddings(self, input_ids):
        return self.embed(input_ids)

    def forward(self, input_ids, positions):
        return self.attn(*self.qkv(self.embed(input_ids)).split(SIZES, -1))

    def compute_logits(self, hidden_states):
        return hidden_states

    def load_weights(self, weights):
        params = dict(self.named_parameters())
        for name, weight in weights:
            params[name].weight_loader(params[name], weight)


def defined(q, k, v, top_k=None, per_layer_sliding_window=None, logits_soft_cap=None):
    """The same of one sequence: `[n, heads, D]` each, in loops."""
    out = torch.zeros_like(q)
    for i in range(len(q)):
        low = max(0, i + 1 - (per_layer_sliding_window or i + 1))
        for h in range(HEADS):
            group = h // (HEADS // KV_HEADS)
            scores = k[low : i + 1, group] @ q[i, h] * 0.5
            if logits_soft_cap:
                scores = logits_soft_cap * (scores / logits_soft_cap).tanh()
            best = sorted(range(len(scores)), key=lambda j: (-scores[j].item(), j))[:top_k]
            out[i, h] = scores[best].softmax(0) @ v[low : i + 1, group][best]
    return out


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_query_attends_to_its_best_keys(kind, backend, tmp_path, registrations):  # noqa: F811
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    weights = {
        "embed.weight": torch.randn(VOCAB, 16, generator=generator),
        "qkv.weight": torch.randn(sum(SIZES), 16, generator=generator) * 0.5,
    }
    weights["qkv.weight"][:DIM] = 0  # all scores of the first head are equal: the earliest keys are the best
    save_file(weights, tmp_path / "model.safetensors")
    config = {"architectures": ["Bare"], "vocab_size": VOCAB, "max_position_embeddings": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ModelRegistry.register_model("Bare", type("Bare", (Bare,), {"options": KINDS[kind]}))
    streams = {i: torch.randint(VOCAB, (n,), generator=generator).tolist() for i, n in enumerate((41, 3, 20))}
    expected = {}
    for i, tokens in streams.items():
        q, k, v = (weights["embed.weight"][tokens] @ weights["qkv.weight"].T).split(SIZES, -1)
        heads = (q.view(-1, HEADS, DIM), k.view(-1, KV_HEADS, DIM), v.view(-1, KV_HEADS, DIM))
        expected[i] = defined(*heads, **KINDS[kind]).flatten(1)
    for chunks in ([100], [7, 3], [1]):
        logits = Driver(load(tmp_path, backend=backend)).run(streams, chunks)
        worst = max(relative_difference(logits[i], expected[i]) for i in streams)
        assert worst < 1e-4, f"{chunks}: {worst:.2e}"
