"""What changes or tests a model's passes: recomputed activations, synchronised BatchNorm, test-time augmentation."""
