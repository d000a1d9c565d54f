"""Write a made-up niche checkpoint: `python examples/niche/make.py feed-forward DIR` (or `attention DIR`).

It is kept as nothing expects: a config with words of its own, tensors under names of their own, and a folder for each
expert with a `.bin` file for each projection. Beside the folder lies `DIR.reference.safetensors`: the logits it gives
for a few prompts, as whoever trained it would record them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from models import ATTENTION, FEED_FORWARD, Model
from safetensors.torch import save_file

import moesaic

TOKENIZER = Path(moesaic.__file__).parent / "embedded" / "moe-model"
OURS = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
PROMPTS, TOKENS = 3, 40


def make(kind: str, folder: Path) -> None:
    """Write the checkpoint of one kind, and its reference."""
    config = {"feed-forward": FEED_FORWARD, "attention": ATTENTION}[kind]
    model = Model(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["MoEModel"]} | config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TOKENIZER / name, folder / name)
    blocks = {}
    for name, tensor in model.state_dict().items():
        part, *rest = name.split(".")
        if part != "blocks":
            torch.save(
                tensor, folder / f"{ {'embedding': 'tok_embeddings', 'norm': 'final_norm'}.get(part, part) }.bin"
            )
        elif "experts" in rest:
            expert, projection = rest[3], rest[4]
            home = folder / f"layer_{rest[0]}" / f"expert_{expert}"
            home.mkdir(parents=True, exist_ok=True)
            torch.save(tensor.clone(), home / f"{OURS.get(projection, projection)}.bin")
        else:
            blocks[name.removesuffix(".weight")] = tensor
    torch.save(blocks, folder / "blocks.bin")
    recorded = {}
    for number in range(PROMPTS):
        ids = torch.randint(0, config["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(number))
        recorded |= {f"input_ids.{number}": ids, f"logits.{number}": model(ids)}
    save_file(recorded, folder.with_name(f"{folder.name}.reference.safetensors"))


if __name__ == "__main__":
    kind, folder = sys.argv[1:]
    make(kind, Path(folder))
    files = sum(path.is_file() for path in Path(folder).rglob("*"))
    print(f"{folder}: a made-up model of {kind} experts, {files} files")
