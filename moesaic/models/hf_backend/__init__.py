"""Architectures without a spec of ours, through transformers' own modelling code with our attention, experts and
scheduler. `allowed.py` says which; nothing here imports torch or transformers before such a model is asked for."""
