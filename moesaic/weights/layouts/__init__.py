"""Checkpoints of many files whose paths say what is in them, one file of ours a layout."""
