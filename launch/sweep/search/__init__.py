"""Searching for good values: what a sweep file says of it (settings), samples (space, tpe), decisions (halving)."""
