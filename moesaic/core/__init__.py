"""The shared vocabulary: requests, batches, parameters, outputs, configuration and errors. Imports nothing of ours."""
