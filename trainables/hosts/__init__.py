"""A host process: its loop, what the broker orders, and the checkpoints it keeps."""
