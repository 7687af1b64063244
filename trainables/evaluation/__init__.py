"""Evaluation of an adapter in a serving form: completions, answers and measures."""
