"""The model that comes with the package: where it lies.

It is a plain HF folder (`config.json`, `model.safetensors`, tokenizer, chat template), so nothing
else is needed to load it. `docs/embedded-model.md` says what it can do and how it was trained.
"""

from __future__ import annotations

from pathlib import Path

EMBEDDED_MODEL_PATH = Path(__file__).parent / "moe-model"


def embedded_model_path() -> Path:
    """The folder of the embedded model; it is there in every installation."""
    return EMBEDDED_MODEL_PATH
