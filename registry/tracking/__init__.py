"""The MLflow server or database: its address, access, experiments, searches, runs of sweeps."""
