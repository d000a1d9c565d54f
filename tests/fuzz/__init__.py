"""Mutated checkpoints, thousands of them: what a damaged or hostile file does must be a typed error and nothing else."""
