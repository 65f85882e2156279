"""What is measured on the machine before training: micro-batch size, compilation, frozen features."""
