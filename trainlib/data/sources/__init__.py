"""One module for each source of images: CIFAR-10, folders, drawings, arrays in memory."""
