"""A look at a whole data set before anyone trains on it: what is in it, what is damaged, and what is there twice."""
