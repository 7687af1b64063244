"""A cluster for the tests of submitting: a stand-in, or that of LORCHESTRA_TEST_KUBECONFIG."""

import os

import pytest
import yaml

from tests.support import manifests as k8s
from tests.support.apiserver import ApiServer
from tests.support.clusters import VARIABLE, open_place
from tests.support.sweeps import SWEEP_VALUES as SWEEP


@pytest.fixture(scope="session")
def api_server():
    """The stand-in; `None` where a real server is named."""
    if VARIABLE in os.environ:
        yield None
        return
    if not (k8s.CRDS / "ray.io_rayjobs.yaml").is_file():
        pytest.skip(k8s.NO_CRDS)
    server = ApiServer(k8s.CRDS)
    yield server
    server.close()


@pytest.fixture
def place(api_server, tmp_path, monkeypatch):
    """A new namespace with the rights of a submitter, in whose name commands run."""
    monkeypatch.chdir(tmp_path)
    found = open_place(tmp_path, api_server)
    yield found
    found.admin.ask("DELETE", f"/api/v1/namespaces/{found.namespace}")


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """Makes stand-ins of the test's own, for faults that no real server has on demand."""
    if not (k8s.CRDS / "ray.io_rayjobs.yaml").is_file():
        pytest.skip(k8s.NO_CRDS)
    monkeypatch.chdir(tmp_path)
    servers = []

    def start(**settings):
        servers.append(ApiServer(k8s.CRDS, **settings))
        return open_place(tmp_path, servers[-1])

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def write_sweep(tmp_path):
    """Writes the sweep file, with changes."""

    def write(**changes):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(SWEEP | changes))
        return str(file)

    return write
