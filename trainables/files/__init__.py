"""Rows of files, the hub or memory: reading, recognition of columns, checks."""
