"""Packing of several adapters into one pass: token layout, and layers with separate seats."""
