"""Record of a sweep: its events, its history, its storage folder, its lease."""
