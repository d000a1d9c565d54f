"""The same work through moesaic and through other engines, alternating in one run: `python -m benchmarks.peers`."""
