"""Measuring a model by its file: what it can do, and what it takes."""
