"""Sources of images: class folders, archives, tables, Hugging Face data sets, CIFAR-10, drawings, arrays in memory."""
