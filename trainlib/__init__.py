"""trainlib: exact, resumable training of image classifiers. Importing it does not import torch."""
