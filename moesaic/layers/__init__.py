"""The parts of a decoder layer: projections, norms, rotary positions, attention over the paged cache."""
