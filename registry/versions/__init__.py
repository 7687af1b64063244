"""Versions of adapters: references, aliases, the ledger of their moves, stored models."""
