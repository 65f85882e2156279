"""Data sets: images fetched by index, their splits, folds, and pictures brought to another size or to grey."""
