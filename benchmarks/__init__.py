"""Benchmarks that need more than the package: other engines, and checkpoints to run them all on."""
