"""Carries out plans: batch tensors, the model, the sampler. Knows nothing of queues and clients."""
