"""Evaluations of versions: documents, runs, intervals, comparisons, the promotion gate."""
