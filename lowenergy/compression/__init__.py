"""Compression methods, one package each, with `compress(...) -> artifact.Model`; none reads or writes model files."""
