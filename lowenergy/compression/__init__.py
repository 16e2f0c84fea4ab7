"""Ways to a smaller network: a package each, with `compress(...) -> artifact.Model`; none knows of files."""
