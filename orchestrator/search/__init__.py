"""Choice of configurations, and rules that stop a trial or end the search."""
