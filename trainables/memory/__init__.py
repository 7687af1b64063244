"""Bytes that training takes: of a base, its adapters and a pass, from their shapes alone."""
