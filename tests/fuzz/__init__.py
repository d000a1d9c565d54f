"""Mutated checkpoints, thousands of them: a damaged or hostile file must end in a typed error and nothing else."""
