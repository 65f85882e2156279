"""What a page says of a run, of a search, and of several runs beside each other."""
