"""Two made-up language models in plain torch, each with random weights: what a niche checkpoint was trained with.

`FeedForwardExperts` routes each token to two of eight feed-forward experts beside one that is always used.
`AttentionExperts` routes it to two of four experts that attend: each owns its queries, keys, values and outputs, and a
token sees, in an expert, the tokens before it that went to the same one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = {"d_model": 64, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 1536, "max_seq_len": 512}
FEED_FORWARD = SIZES | {
    "architecture": "sparse-decoder",
    "ffn_dim": 48,
    "experts_num": 8,
    "experts_per_token": 2,
    "shared_experts_num": 1,
    "router_type": "softmax",
    "activation": "swish",
    "norm_eps": 1e-5,
    "rope_base": 50000.0,
    "tie_embeddings": False,
    "expert_dropout": 0.1,
}
ATTENTION = SIZES | {
    "architecture": "attending-experts",
    "ffn_dim": 96,
    "experts_num": 4,
    "experts_per_token": 2,
    "router_type": "softmax_renormalized",
    "activation": "swish",
    "norm_eps": 1e-5,
    "rope_base": 10000.0,
    "rope_style": "half",
    "tie_embeddings": True,
    "expert_dropout": 0.1,
}


def rotate(x: Tensor, positions: Tensor, base: float, pairs: bool) -> Tensor:
    """Rotary positions of heads `[T, heads, D]`: neighbours are turned against each other, or halves."""
    size = x.shape[-1]
    angles = positions[:, None] * base ** (-torch.arange(0, size, 2) / size)  # [T, D / 2]
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = (x[..., ::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
    turned = a * cos - b * sin, b * cos + a * sin
    return torch.stack(turned, -1).flatten(-2) if pairs else torch.cat(turned, -1)


class Attention(nn.Module):
    """Causal attention; heads of queries share those of keys and values."""

    def __init__(self, config: dict, pairs: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads = config["n_heads"], config["n_kv_heads"]
        self.size, self.base, self.pairs = config["d_model"] // config["n_heads"], config["rope_base"], pairs
        for name, heads in {"wq": self.heads, "wk": self.kv_heads, "wv": self.kv_heads}.items():
            setattr(self, name, nn.Linear(config["d_model"], heads * self.size, bias=False))
        self.wo = nn.Linear(self.heads * self.size, config["d_model"], bias=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (-1, self.size)) for w in (self.wq, self.wk, self.wv))
        q, k = (rotate(t, positions, self.base, self.pairs).transpose(0, 1) for t in (q, k))
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 0) for t in (k, v.transpose(0, 1)))
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(1))


class FeedForward(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Routed(nn.Module):
    """Two experts a token, by a softmax over all, the two weights renormalised."""

    def __init__(self, config: dict, experts: list[nn.Module]) -> None:
        super().__init__()
        self.router = nn.Linear(config["d_model"], config["experts_num"], bias=False)
        self.experts, self.top_k = nn.ModuleList(experts), config["experts_per_token"]

    def forward(self, x: Tensor, *positions: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, choice = (chosen == number).nonzero(as_tuple=True)
            if len(rows):  # in the order of the tokens
                given = expert(x[rows], *(p[rows] for p in positions))
                out[rows] += weights[rows, choice, None] * given
        return out


class Block(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        hidden, inner, eps = config["d_model"], config["ffn_dim"], config["norm_eps"]
        self.norm_1, self.norm_2 = nn.RMSNorm(hidden, eps), nn.RMSNorm(hidden, eps)
        self.attending = config["architecture"] == "attending-experts"
        count = range(config["experts_num"])
        if self.attending:
            self.attn: nn.Module = Routed(config, [Attention(config, pairs=False) for _ in count])
            self.ffn: nn.Module = FeedForward(hidden, inner)
        else:
            self.attn = Attention(config, pairs=True)
            self.ffn = Routed(config, [FeedForward(hidden, inner) for _ in count])
            self.shared = FeedForward(hidden, inner)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x), positions)
        h = self.norm_2(x)
        return x + self.ffn(h) + (0 if self.attending else self.shared(h))


class Model(nn.Module):
    """Either model, as its config says; `[T]` token ids -> `[T, V]` logits."""

    def __init__(self, config: dict, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config["vocab_size"], config["d_model"])
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["n_layers"]))
        self.norm = nn.RMSNorm(config["d_model"], config["norm_eps"])
        tied = config["tie_embeddings"]
        self.output = None if tied else nn.Linear(config["d_model"], config["vocab_size"], bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            mean, spread = (1.0, 0.2) if "norm" in name else (0.0, 0.15)
            parameter.data.normal_(mean, spread, generator=generator)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        x, positions = self.embedding(ids), torch.arange(len(ids))
        for block in self.blocks:
            x = block(x, positions)
        x = self.norm(x)
        return x @ self.embedding.weight.T if self.output is None else self.output(x)
