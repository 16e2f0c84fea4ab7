"""Thin entrypoints: `python -m stages.NAME` reads params and files, makes one call, writes files. See dvc.yaml."""
