"""What features do over a corpus: scanned once for all features of all SAEs, kept as Parquet, asked without a model."""
