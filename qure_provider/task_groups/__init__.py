"""Whole pipelines as task groups."""
