"""Finalists: repeats with new seeds, test rows, serving forms, and their ranking."""
