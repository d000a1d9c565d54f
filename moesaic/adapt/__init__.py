"""The tools of those who have a checkpoint: what it is, whether it is right, what it needs, and how to change it."""
