"""Drafting a spec file for a checkpoint of an unknown architecture."""
