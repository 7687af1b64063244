"""Rows of files, the hub or memory: read, recognized by their columns, checked."""
