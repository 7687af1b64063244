"""A base model: where it lies, how wide it is, where it stops, its weights in a stored form."""
