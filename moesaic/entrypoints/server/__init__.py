"""The OpenAI-compatible HTTP server. Torch-free: the engine runs in a process of its own."""
