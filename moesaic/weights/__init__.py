"""From the tensors of a checkpoint to the parameters of a model, all of them, exactly once."""
