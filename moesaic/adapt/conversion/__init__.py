"""`convert`: a checkpoint in any readable layout, written anew.

A conversion goes file by file. Each is hashed while it is written, read back, and only then listed in the manifest, so
that one which was stopped goes on behind the last file that is known to be whole. `convert` is the way through it,
`tensors` says what is written, `folder` begins and ends the folder, and `packed` writes what the kernels read.
"""
