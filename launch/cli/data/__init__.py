"""Commands for data sets: `data`, `pack`, `cache` and `labels`."""
