"""The Ray of a sweep, joined where one runs."""

import os

import pytest
import ray

from orchestrator.hosts.cluster import ray_cluster
from tests.orchestrator.hosts.test_placement import RANK, build_spec


@pytest.mark.ray
def test_a_ray_that_runs_already_is_joined_and_left_running(local_ray, monkeypatch):
    monkeypatch.delenv("TUNE_DISABLE_SIGINT_HANDLER", raising=False)
    with ray_cluster(build_spec(RANK, seats=2)) as placement:
        assert placement.limits.seats == 2
        assert placement.shape.torch_threads <= (os.cpu_count() or 1)
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1"
    assert ray.is_initialized()
