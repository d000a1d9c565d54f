"""The command line: main.py finds the verb, one file holds each."""
