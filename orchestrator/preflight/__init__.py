"""Before a sweep: what `run` checks first, and the commands `init`, `check` and `doctor`."""
