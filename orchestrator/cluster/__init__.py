"""Sweeps on Kubernetes: submitted, watched and steered from a laptop, through the API server."""
