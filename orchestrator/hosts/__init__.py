"""Placement of trials: proxies of Ray Tune, the broker, seats, host processes, the cluster."""
