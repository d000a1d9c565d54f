"""Write a run's checkpoint as an HF folder: `python -m tools.train_embedded.export --run DIR --out FOLDER`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from .model import TrainConfig, TrainModel, hf_tensors
from .tokenizer import END, PAD


def hf_config(c: TrainConfig, end: int, pad: int) -> dict[str, object]:
    """The config of a `Qwen3MoeForCausalLM` of this shape."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": end,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "hidden_size": c.hidden_size,
        "initializer_range": 0.02,
        # Width of a dense layer, which this model has none of; HF's config wants a number.
        "intermediate_size": c.moe_intermediate_size * c.num_experts_per_tok,
        "max_position_embeddings": c.max_position_embeddings,
        "mlp_only_layers": [],
        "moe_intermediate_size": c.moe_intermediate_size,
        "norm_topk_prob": True,
        "num_attention_heads": c.num_attention_heads,
        "num_experts": c.num_experts,
        "num_experts_per_tok": c.num_experts_per_tok,
        "num_hidden_layers": c.num_hidden_layers,
        "num_key_value_heads": c.num_key_value_heads,
        "output_router_logits": False,
        "pad_token_id": pad,
        "rms_norm_eps": c.rms_norm_eps,
        "rope_parameters": {"rope_theta": c.rope_theta, "rope_type": "default"},
        "router_aux_loss_coef": 0.01,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": c.vocab_size,
    }


def export(run: Path, out: Path) -> TrainModel:
    """Export `run` to `out`; the weights become bfloat16. Returns the training model, in fp32."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    config = TrainConfig(**state["config"])
    model = TrainModel(config)
    model.load_state_dict(state["model"])

    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
    vocab = {t["content"]: t["id"] for t in json.loads((run / "tokenizer.json").read_text())["added_tokens"]}
    end, pad = vocab[END], vocab[PAD]
    (out / "config.json").write_text(json.dumps(hf_config(config, end, pad), indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": end, "pad_token_id": pad}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = {name: w.to(torch.bfloat16) for name, w in hf_tensors(model).items()}
    temporary = out / "model.safetensors.tmp"
    metadata = {"format": "pt", "seed": str(state["seed"]), "steps": str(state["step"])}
    save_file(tensors, temporary, metadata=metadata)
    os.replace(temporary, out / "model.safetensors")
    return model


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("moesaic/embedded/moe-model"))
    args = parser.parse_args()
    export(args.run, args.out)
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
