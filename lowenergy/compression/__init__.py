"""Four ways to a smaller network. Each module has `compress(...) -> artifact.Model`; none knows of files."""
