"""A checkpoint in W8A8 as vLLM reads it (compressed-tensors: int8 weights, a scale a row; int8 activations):

    python -m benchmarks.peers.to_w8a8 CHECKPOINT OUT

Weights are rounded to nearest: good enough to time an engine, not to judge a quantiser.
"""

import json
import shutil
from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = ("lm_head", "re:.*mlp\\.gate$", "re:.*block_sparse_moe\\.router.*")  # as compressed-tensors writes exceptions
ROUTERS = (".mlp.gate.", ".router.")
SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": list(KEPT),
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a projection's weight; embeddings, the head, routers and norms stay."""
    return tensor.dim() == 2 and not any(part in name for part in ("embed", "lm_head", *ROUTERS))


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes `[N, K]` and fp32 scales `[N, 1]`."""
    scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (weight.float() / scale).round().to(torch.int8), scale


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(checkpoint: Path, out: Path) -> None:
    """Write CHECKPOINT, quantised, into OUT: a file at a time."""
    out.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for file in sorted(checkpoint.iterdir()):
        if file.name.endswith(".index.json"):
            continue
        if file.suffix != ".safetensors":
            shutil.copy(file, out)
            continue
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(file).items():
            if is_quantised(name, tensor):
                tensors[name], tensors[f"{name.removesuffix('weight')}weight_scale"] = quantise(tensor)
            else:
                tensors[name] = tensor
        save_file(tensors, out / file.name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = json.loads((checkpoint / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": SCHEME}, indent=1))


if __name__ == "__main__":
    main()
