"""Single pictures: where their bytes come from, how they are decoded, and what of them a model sees."""
