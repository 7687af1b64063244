"""Data sets: rows parted into splits, cut to a length, drawn for each epoch, summarized."""
