"""Programs about a data set: its survey, its first batch, a configuration for it."""
