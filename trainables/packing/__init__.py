"""Packing of several adapters into one pass: the token layout, and layers that separate seats."""
