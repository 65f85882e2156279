"""Checks of machines and ranks: devices before a run, the speed of all-reduce, processes that hang."""
