"""Implementations of the operations: one oracle in plain torch, and backends that can say no."""
