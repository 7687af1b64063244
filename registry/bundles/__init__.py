"""Bundles as files of a version: card, integrity, packaging, registration, loading."""
