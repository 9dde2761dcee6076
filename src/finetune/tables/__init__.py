"""The one table of predictions: CSV, Parquet or JSON lines, with one writer and one reader."""
