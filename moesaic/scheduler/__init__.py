"""Who runs in a step, and which blocks they hold. Plain ints only: tested without a model."""
