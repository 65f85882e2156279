"""What is measured on a machine with an NVIDIA GPU: `make bench-gpu`. All of it runs on a CPU too, to be tried."""
