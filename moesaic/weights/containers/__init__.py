"""Files that hold tensors, one file of ours a format: headers are read without torch, data on demand."""
