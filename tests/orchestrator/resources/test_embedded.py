"""Nobody else gets into an embedded Ray, by file, by socket or by network."""

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest


@pytest.mark.ray
def test_an_embedded_ray_is_private_to_its_user():
    script = Path(__file__).with_name("embedded_cluster.py")
    secrets = {
        name: f"PLANTED-{name}"
        for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")
    }
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=kept | secrets | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    addresses = [ipaddress.ip_address(text) for text in facts["listening"]]
    assert addresses
    assert all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in addresses)
    assert (facts["mode"], facts["listed"], facts["files"]) == (0o700, "", [])
    assert facts["needed"] == secrets["HF_TOKEN"]  # hosts load bases from a hub
    assert facts["password"] == ""
    assert facts["driver"] == secrets["MLFLOW_TRACKING_PASSWORD"]
    assert not facts["remains"]


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.ray
def test_nothing_of_an_embedded_ray_outlives_a_killed_driver(short_folder):
    script = (
        "import time\n"
        "from orchestrator.resources.embedded import embedded_ray\n"
        "with embedded_ray(1):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    driver = psutil.Popen(
        [sys.executable, "-c", script],
        env=kept | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": str(short_folder)},
        stdout=subprocess.PIPE,
    )
    assert driver.stdout.readline() == b"up\n"
    assert next(one.name for one in short_folder.iterdir()).startswith("lo-")
    family = driver.children(recursive=True)
    assert len(family) > 4
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    driver.stdout.close()
    assert list(short_folder.iterdir()) == []
