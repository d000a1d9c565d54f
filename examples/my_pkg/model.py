"""The same model as a class, made of the layer library, with an MoE layer of its own."""

from collections.abc import Iterable

from torch import Tensor, nn

from moesaic.library import (
    Attention,
    FusedMoE,
    ParallelLMHead,
    QKVParallelLinear,
    RMSNorm,
    RotaryEmbedding,
    Router,
    RowParallelLinear,
    VocabParallelEmbedding,
    default_weight_loader,
)


class MyAttention(nn.Module):
    """project → norm → rotate → attend → project."""

    def __init__(self, config, prefix: str) -> None:
        super().__init__()
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        head_size = config.hidden_size // heads
        self.sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        self.qkv_proj = QKVParallelLinear(config.hidden_size, head_size, heads, kv_heads, prefix=f"{prefix}.qkv_proj")
        self.o_proj = RowParallelLinear(heads * head_size, config.hidden_size, prefix=f"{prefix}.o_proj")
        self.q_norm = RMSNorm(self.sizes[0], config.rms_norm_eps)
        self.k_norm = RMSNorm(self.sizes[1], config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(head_size, config.rope(head_size))
        self.attn = Attention(heads, head_size, head_size**-0.5, kv_heads, prefix=f"{prefix}.attn")

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(hidden_states).split(self.sizes, dim=-1)
        q, k = self.rotary_emb(positions, self.q_norm(q), self.k_norm(k))
        return self.o_proj(self.attn(q, k, v))


class MoEModel(nn.Module):
    """router → experts → combine: who computes a token, what they make of it, and the weighted sum."""

    def __init__(self, config, prefix: str) -> None:
        super().__init__()
        self.gate = Router(
            config.hidden_size,
            config.num_experts,
            top_k=config.num_experts_per_tok,
            renormalize=config.norm_topk_prob,
            prefix=f"{prefix}.gate",
        )
        self.experts = FusedMoE(
            config.num_experts,
            config.num_experts_per_tok,
            config.hidden_size,
            config.intermediate_size,
            activation="silu",
            prefix=f"{prefix}.experts",
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        routing = self.gate(hidden_states)  # .ids [T, k], .weights [T, k]
        return self.experts(hidden_states, routing)  # each token's k outputs, summed in k order


class MyDecoderLayer(nn.Module):
    """Attention and experts, each behind a norm and added to the residual."""

    def __init__(self, config, prefix: str) -> None:
        super().__init__()
        self.self_attn = MyAttention(config, f"{prefix}.self_attn")
        self.mlp = MoEModel(config, f"{prefix}.mlp")
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            normed, residual = self.input_layernorm(hidden), hidden
        else:
            normed, residual = self.input_layernorm(hidden, residual)
        attended = self.self_attn(positions, normed)
        normed, residual = self.post_attention_layernorm(attended, residual)
        return self.mlp(normed), residual


class MyModel(nn.Module):
    """All but the projection to logits."""

    def __init__(self, config, prefix: str) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, prefix=f"{prefix}.embed_tokens"
        )
        self.layers = nn.ModuleList(
            MyDecoderLayer(config, f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        hidden, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.norm(hidden, residual)[0]


class MyModelForCausalLM(nn.Module):
    """What the engine builds, fills and calls."""

    def __init__(self, *, vllm_config, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        config.refuse_unless("hidden_act", "silu")
        config.refuse_unless("attention_bias", False)
        config.refuse_unless("clip_qkv", None)
        config.refuse_unless("tie_word_embeddings", False)
        self.config = config
        self.model = MyModel(config, f"{prefix}.model" if prefix else "model")
        self.lm_head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix="lm_head")

    def get_input_embeddings(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.model(input_ids, positions)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        shards = [(f"self_attn.{s}_proj.", "self_attn.qkv_proj.", {"shard_id": s}) for s in "qkv"]
        experts = FusedMoE.make_expert_params_mapping("gate_proj", "down_proj", "up_proj", self.config.num_experts)
        shards += [(theirs, ours, {"expert_id": e, "shard_id": shard}) for ours, theirs, e, shard in experts]
        params = dict(self.named_parameters())
        for name, weight in weights:
            found = next((shard for shard in shards if shard[0] in name), None)
            if found is None:
                default_weight_loader(params[name], weight)
                continue
            theirs, ours, which = found
            param = params[name.replace(theirs, ours)]
            param.weight_loader(param, weight, **which)
