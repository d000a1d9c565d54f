"""The training model: Qwen3-MoE mathematics, written for speed on one CPU thread.

Documents of one batch are grouped by (padded) length. Every layer but attention sees the batch
flattened to `[T, hidden]`; attention sees one `[n, length]` rectangle per group, so that short
documents cost no long-context attention. Experts run as segments of the tokens sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Groups = list[tuple[int, int]]  # (documents, padded length) of each rectangle of the batch


@dataclass(frozen=True)
class TrainConfig:
    """Shape of the model; the names are those of the HF config."""

    vocab_size: int = 1536
    hidden_size: int = 192
    num_hidden_layers: int = 5
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    num_experts: int = 16
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048


class Attention(nn.Module):
    """Grouped-query attention with RMS norms on queries and keys, and rotary positions."""

    def __init__(self, c: TrainConfig) -> None:
        super().__init__()
        self.c = c
        q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.qkv = nn.Parameter(torch.empty(q + 2 * kv, c.hidden_size))
        self.out = nn.Parameter(torch.empty(c.hidden_size, q))
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, groups: Groups) -> Tensor:
        """`x` is `[T, hidden]`; `cos` and `sin` are `[T, 1, head_dim]`."""
        c = self.c
        heads, kv, d = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        qkv = F.linear(x, self.qkv).view(-1, heads + 2 * kv, d)
        # split, not slices: the backward of a slice fills a whole tensor with zeros.
        q, k, v = qkv.split([heads, kv, kv], dim=1)
        q = rotate(F.rms_norm(q, (d,), self.q_norm, c.rms_norm_eps), cos, sin)
        k = rotate(F.rms_norm(k, (d,), self.k_norm, c.rms_norm_eps), cos, sin)
        k, v = k.repeat_interleave(heads // kv, 1), v.repeat_interleave(heads // kv, 1)
        sizes = [n * length for n, length in groups]
        outs = []
        for (n, length), *parts in zip(groups, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            gq, gk, gv = (part.reshape(n, length, heads, d).transpose(1, 2) for part in parts)
            o = F.scaled_dot_product_attention(gq, gk, gv, is_causal=True)
            outs.append(o.transpose(1, 2).reshape(n * length, heads * d))
        return F.linear(torch.cat(outs), self.out)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split layout of HF."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Experts(nn.Module):
    """Softmax router, renormalised top-k, SwiGLU experts."""

    def __init__(self, c: TrainConfig) -> None:
        super().__init__()
        self.c = c
        e, h, i = c.num_experts, c.hidden_size, c.moe_intermediate_size
        self.router = nn.Parameter(torch.empty(e, h))
        self.gate_up = nn.Parameter(torch.empty(e, 2 * i, h))
        self.down = nn.Parameter(torch.empty(e, h, i))

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture `[T, hidden]`, the balance loss, and each expert's share `[E]`.

        `valid` `[T]` is 0 for padding: those tokens go through but do not count for the balance.
        """
        c = self.c
        probs = F.softmax(F.linear(x, self.router), dim=-1)  # [T, E]
        weights, ids = probs.topk(c.num_experts_per_tok, dim=-1)  # [T, k]
        weights = weights / weights.sum(-1, keepdim=True)

        flat = ids.flatten()
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat, minlength=c.num_experts).tolist()
        rows = order // c.num_experts_per_tok
        segments = x.index_select(0, rows).split(counts)
        outs = []
        # unbind, not indexing: its backward stacks the experts' gradients once.
        for segment, gate_up, down in zip(segments, self.gate_up.unbind(0), self.down.unbind(0), strict=True):
            gate, up = F.linear(segment, gate_up).chunk(2, dim=-1)
            outs.append(F.linear(F.silu(gate) * up, down))
        mixed = torch.cat(outs) * weights.flatten().index_select(0, order).unsqueeze(-1)
        y = torch.zeros_like(x).index_add(0, rows, mixed)

        total = valid.sum()
        hits = torch.zeros(c.num_experts).index_add_(0, flat, valid.repeat_interleave(c.num_experts_per_tok))
        share = hits / (total * c.num_experts_per_tok)
        balance = c.num_experts * (share * (probs * valid.unsqueeze(-1)).sum(0) / total).sum()
        return y, balance, share


class Layer(nn.Module):
    """norm, attention, norm, experts, each around a residual."""

    def __init__(self, c: TrainConfig) -> None:
        super().__init__()
        self.eps = c.rms_norm_eps
        self.input_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.post_norm = nn.Parameter(torch.ones(c.hidden_size))
        self.attention = Attention(c)
        self.experts = Experts(c)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, groups: Groups, valid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = x.shape[-1:]
        x = x + self.attention(F.rms_norm(x, shape, self.input_norm, self.eps), cos, sin, groups)
        y, balance, share = self.experts(F.rms_norm(x, shape, self.post_norm, self.eps), valid)
        return x + y, balance, share


class TrainModel(nn.Module):
    """A Qwen3-MoE decoder with tied embeddings."""

    def __init__(self, c: TrainConfig) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.empty(c.vocab_size, c.hidden_size))
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(c.hidden_size))
        inv = 1.0 / (c.rope_theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        angles = torch.outer(torch.arange(c.max_position_embeddings).float(), inv)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Normal initial weights; what writes to the residual stream starts smaller."""
        small = 0.02 / (2 * self.c.num_hidden_layers) ** 0.5
        for name, p in self.named_parameters():
            if p.dim() > 1:
                std = small if name.endswith((".out", ".down")) else 0.02
                fan_in = p.shape[-1]
                # 0.02 is small for a narrow model: scale like 1/sqrt(fan_in) instead.
                if not name.endswith("embed"):
                    std = std / 0.02 * fan_in**-0.5
                nn.init.normal_(p, std=std)

    def hidden(self, ids: Tensor, groups: Groups, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Final hidden states `[T, hidden]`, mean balance loss, expert shares `[layers, E]`."""
        positions = torch.cat([torch.arange(length).repeat(n) for n, length in groups])
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        x = F.embedding(ids, self.embed)
        balances, shares = [], []
        for layer in self.layers:
            x, balance, share = layer(x, cos, sin, groups, valid)
            balances.append(balance)
            shares.append(share)
        x = F.rms_norm(x, x.shape[-1:], self.norm, self.c.rms_norm_eps)
        return x, torch.stack(balances).mean(), torch.stack(shares).detach()

    def logits(self, x: Tensor) -> Tensor:
        """Scores over the vocabulary, `[T, vocab]`."""
        return F.linear(x, self.embed)


def hf_tensors(model: TrainModel) -> dict[str, Tensor]:
    """The weights under the names of an HF Qwen3-MoE checkpoint."""
    c = model.c
    q, kv, i = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.moe_intermediate_size
    out: dict[str, Tensor] = {"model.embed_tokens.weight": model.embed, "model.norm.weight": model.norm}
    for n, layer in enumerate(model.layers):
        p, a, m = f"model.layers.{n}.", layer.attention, layer.experts
        out[p + "input_layernorm.weight"] = layer.input_norm
        out[p + "post_attention_layernorm.weight"] = layer.post_norm
        for name, w in zip("qkv", a.qkv.split([q, kv, kv]), strict=True):
            out[f"{p}self_attn.{name}_proj.weight"] = w
        out[p + "self_attn.o_proj.weight"] = a.out
        out[p + "self_attn.q_norm.weight"] = a.q_norm
        out[p + "self_attn.k_norm.weight"] = a.k_norm
        out[p + "mlp.gate.weight"] = m.router
        for e in range(c.num_experts):
            out[f"{p}mlp.experts.{e}.gate_proj.weight"] = m.gate_up[e, :i]
            out[f"{p}mlp.experts.{e}.up_proj.weight"] = m.gate_up[e, i:]
            out[f"{p}mlp.experts.{e}.down_proj.weight"] = m.down[e]
    return {name: w.detach().clone().contiguous() for name, w in out.items()}
