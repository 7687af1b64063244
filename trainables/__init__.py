"""Training of one or several adapters on one frozen base; imports neither Ray Tune nor MLflow."""
