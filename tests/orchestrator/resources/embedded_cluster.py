"""Start an embedded Ray and say what others on this machine and network could do with it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import ray

from orchestrator.resources.embedded import embedded_ray

OTHER_USER = "nobody"


def seen_by_another_user(folder: Path) -> str:
    """What another user lists in a folder; only root can ask as someone else."""
    if os.getuid() != 0:
        return ""
    listed = subprocess.run(
        ["ls", str(folder)], user=OTHER_USER, capture_output=True, text=True, check=False
    )
    return listed.stdout


@ray.remote
class Worker:
    """Reads its environment."""

    def environment(self) -> dict[str, str]:
        """All variables."""
        return dict(os.environ)


with embedded_ray(1):
    environment = ray.get(Worker.remote().environment.remote())
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    folder = session.parents[1]
    facts = {
        "listening": sorted(
            {
                connection.laddr.ip
                for process in family
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
        ),
        "mode": stat.S_IMODE(folder.stat().st_mode),
        "listed": seen_by_another_user(folder),
        "needed": environment.get("HF_TOKEN"),
        "password": environment.get("MLFLOW_TRACKING_PASSWORD"),
        "files": [
            str(path)
            for path in session.rglob("*")
            if path.is_file() and b"PLANTED" in path.read_bytes()
        ],
        "driver": os.environ["MLFLOW_TRACKING_PASSWORD"],
    }
facts["remains"] = folder.exists()
sys.stdout.write(json.dumps(facts) + "\n")
