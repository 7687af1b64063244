"""Base models: location, size, end tokens, and weights in a stored form."""
