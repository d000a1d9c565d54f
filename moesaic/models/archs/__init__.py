"""One file an architecture: `spec(config)`, `RULES`, and the names it answers to. Nothing else knows these names."""
