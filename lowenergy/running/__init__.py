"""Run the pipeline on many cores and machines: DVC decides what must run and what a result is, Dask where it runs."""
