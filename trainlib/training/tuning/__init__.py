"""What is fitted to the machine: micro-batch size, before training and where memory runs out, compilation, features."""
