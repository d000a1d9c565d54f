"""Random-weight MoE checkpoints in published shapes, so that every engine is measured on the same file.

    python -m benchmarks.make_checkpoint qwen3-moe-mini .bench/qwen3-moe-mini

writes bf16 safetensors in plain Hugging Face format, with a byte-level BPE tokenizer, since most engines refuse a
folder without one. Routing is about uniform: the hardest case for whatever hopes to reuse an expert.
"""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

# name -> (model_type, keys of transformers' config class)
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    # 1.0 B parameters, 178 M active: small enough for quick runs, too large for any cache
    "qwen3-moe-mini": (
        "qwen3_moe",
        {
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "moe_intermediate_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
        },
    ),
    # the other families of the engine's first days, as small
    "mixtral-mini": (
        "mixtral",
        {
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 1792,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
        },
    ),
    "olmoe-mini": (
        "olmoe",
        {
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 32,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "tie_word_embeddings": False,
        },
    ),
    "llama-mini": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    # granite-3.0-1b-a400m
    "granite-1b-a400m": (
        "granitemoe",
        {
            "vocab_size": 49155,
            "hidden_size": 1024,
            "intermediate_size": 512,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_local_experts": 32,
            "num_experts_per_tok": 8,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.015625,
            "residual_multiplier": 0.22,
            "logits_scaling": 6.0,
            "tie_word_embeddings": True,
        },
    ),
    # OLMoE-1B-7B-0924: 13.8 GB
    "olmoe-1b-7b": (
        "olmoe",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "tie_word_embeddings": False,
        },
    ),
}
MAX_POSITIONS = 4096
WEIGHT_STD = 0.02
LAYER = ".layers.0."
END = "<|endoftext|>"
LEARNED_VOCABULARY = 8000  # more merges than this cost time and change no figure; the rest of the ids are unused tokens


def make(shape: str, folder: str | Path, seed: int = 0, tokenizer: bool = True, **overrides: Any) -> Path:
    """Write a checkpoint of `shape` into `folder`, which is made: a layer at a time, so that memory for one is enough.

    Args:
        tokenizer: write one too; it takes longer than a small model's weights.
        overrides: keys of transformers' config class, such as num_hidden_layers=2.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, values = SHAPES[shape]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    values = {"max_position_embeddings": MAX_POSITIONS, **special, **values, **overrides}
    config = AutoConfig.for_model(model_type, **values)
    with torch.device("meta"):
        one = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **values | {"num_hidden_layers": 1}), dtype=torch.bfloat16
        )
    one.to_empty(device="cpu")
    one.tie_weights()
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    _write_weights(one, config.num_hidden_layers, path, torch.Generator().manual_seed(seed))
    config.architectures, config.dtype = [type(one).__name__], torch.bfloat16
    config.save_pretrained(path)
    one.generation_config.save_pretrained(path)
    if tokenizer:
        _tokenizer(config.vocab_size).save_pretrained(path)
    return path


def _write_weights(one: Any, num_layers: int, folder: Path, generator: Any) -> None:
    """Random shards and their index: what lies outside the layers, then layer after layer.

    Args:
        one: a transformers model of one layer, drawn anew for each; it knows the names of its checkpoint's tensors.
    """
    import torch
    from safetensors.torch import save_file
    from transformers.core_model_loading import revert_weight_conversion

    places: dict[str, str] = {}
    total = 0
    for shard in range(num_layers + 1):
        drawn = {name: p for name, p in one.named_parameters() if (LAYER in name) == (shard > 0)}
        with torch.no_grad():
            for name, parameter in drawn.items():
                if "norm" in name:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, WEIGHT_STD, generator=generator)
        tensors = {
            name.replace(LAYER, f".layers.{shard - 1}."): tensor.detach().clone(memory_format=torch.contiguous_format)
            for name, tensor in revert_weight_conversion(one, drawn).items()
        }
        file = f"model-{shard + 1:05}-of-{num_layers + 1:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _tokenizer(vocab_size: int) -> Any:
    """Byte-level BPE trained on the standard library's source, filled up to `vocab_size` with unused tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, LEARNED_VOCABULARY),
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sources(), trainer)
    tokenizer.add_tokens([f"<|unused{i}|>" for i in range(vocab_size - tokenizer.get_vocab_size())])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)


def _sources() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.read_text(errors="replace")


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder")
@click.option("--seed", default=0, show_default=True, help="of the weights")
def main(shape: str, folder: str, seed: int) -> None:
    """Write a random checkpoint of SHAPE into FOLDER."""
    path = make(shape, folder, seed)
    size = sum(file.stat().st_size for file in path.iterdir())
    click.echo(f"{shape} in {path}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
