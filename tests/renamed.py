"""Known models under names that nothing here knows: config keys, tensors and architecture renamed."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

TENSORS = (
    ("model.layers.", "blocks."),
    ("model.embed_tokens.", "tok_embeddings."),
    ("model.norm.", "final_norm."),
    ("lm_head.", "output."),
    ("self_attn.q_proj", "attn.wq"),
    ("self_attn.k_proj", "attn.wk"),
    ("self_attn.v_proj", "attn.wv"),
    ("self_attn.o_proj", "attn.wo"),
    ("self_attn.q_norm", "attn.norm_q"),
    ("self_attn.k_norm", "attn.norm_k"),
    ("self_attn.query_layernorm", "attn.norm_q"),
    ("self_attn.key_layernorm", "attn.norm_k"),
    ("self_attn.sinks", "attn.sink_logits"),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
    ("mlp.gate.e_score_correction_bias", "moe.router.balance_bias"),
    ("block_sparse_moe.router.layer.", "moe.switch."),
    ("block_sparse_moe.gate.", "moe.router."),
    ("mlp.gate.wg.", "moe.router."),
    ("mlp.gate.", "moe.router."),
    ("mlp.router.", "moe.router."),
    ("mlp.shared_expert_gate.", "moe.common_gate."),
    ("mlp.shared_experts.", "moe.common."),
    ("mlp.shared_expert.", "moe.common."),
    ("mlp.shared_mlp.", "moe.common."),
    ("shared_mlp.", "moe.common."),
    ("mlp.experts.", "moe.expert_list."),
    ("block_sparse_moe.experts.", "moe.expert_list."),
    ("block_sparse_moe.", "moe.experts."),
    ("mlp.", "ffn."),
    ("gate_up_proj", "wi"),
    ("gate_proj.", "wi_0."),
    ("up_proj.", "wi_1."),
    ("down_proj", "wo"),
)
KEYS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "d_head",
    "vocab_size": "n_vocab",
    "num_experts": "experts_num",
    "num_local_experts": "experts_num",
    "n_routed_experts": "experts_num",
    "num_experts_per_tok": "experts_per_token",
    "moe_topk": "experts_per_token",
    "moe_intermediate_size": "expert_width",
    "intermediate_size": "ffn_dim",
    "shared_expert_intermediate_size": "shared_expert_dim",
    "shared_intermediate_size": "shared_expert_dim",
    "n_shared_experts": "shared_experts_num",
    "first_k_dense_replace": "n_dense_layers",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "context_length",
    "tie_word_embeddings": "tie_embeddings",
    "norm_topk_prob": "normalize_expert_weights",
    "routed_scaling_factor": "router_scale",
    "hidden_act": "activation",
    "n_group": "num_expert_groups",
    "topk_group": "top_k_groups",
}


def rename(source: str | Path, target: str | Path) -> Path:
    """Write the checkpoint in folder `source` to folder `target` under other names."""
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    config = {KEYS.get(key, key): value for key, value in config.items()}
    config |= {"architectures": ["MoEModel"], "model_type": "niche"}
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    save_file({_renamed(name): tensor for name, tensor in tensors.items()}, target / "model.safetensors")
    return target


def _renamed(name: str) -> str:
    for old, new in TENSORS:
        name = name.replace(old, new)
    return name
