"""Benchmarks. `make bench` compares with other training loops; the other files each say what they measure."""
