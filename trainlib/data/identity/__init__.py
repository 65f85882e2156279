"""Which samples a data set is made of, by name, size and content, and into which splits they go."""
