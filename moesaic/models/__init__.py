"""What a model computes (specs, architectures) and the decoder that computes it."""
