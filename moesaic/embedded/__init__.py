"""The model that comes with the package, in `moe-model/`: a plain HF folder.

`docs/embedded-model.md` says what it can do; `tools/train_embedded/` is how it was trained.
"""
