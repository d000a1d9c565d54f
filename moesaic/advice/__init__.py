"""What to change about a server that runs, from its own figures: reading them, and a tree of questions about them.

Torch-free, and pure but for `fetch`: the command line, the server and the tests ask the same functions.
"""
