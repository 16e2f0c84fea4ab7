"""The pipeline on many cores and machines: DVC says what must run and what a result is, Dask where it runs."""
