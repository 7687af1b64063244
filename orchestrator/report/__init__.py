"""A sweep as people see it: live table, summary, leaderboard, page, plots, MLflow runs."""
