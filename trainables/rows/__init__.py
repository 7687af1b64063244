"""Data sets: rows divided into splits, cut to a length, ordered for each epoch, summarized."""
