"""Models in GGUF files: metadata to a config, names to parameters, and a folder to serve from. Torch-free."""
