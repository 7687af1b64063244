"""Training one or many adapters on one frozen base; knows neither Ray Tune nor MLflow."""
