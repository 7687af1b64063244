"""Writes the RayJobs that `lorchestra submit` fills in, from the sweeps of the overlays.

python k8s/make_templates.py

An installed package has no kustomize: it carries what kustomize renders. A test compares.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.cluster.templates import OVERLAYS, template_file  # noqa: E402

_HEAD = (
    "# python k8s/make_templates.py writes this file from k8s/overlays/{folder}; do not edit.\n"
)


def rendered(folder: str) -> str:
    """The RayJob of a sweep's folder in k8s/overlays, as YAML."""
    text = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / folder)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    (job,) = [one for one in yaml.safe_load_all(text) if one["kind"] == "RayJob"]
    return _HEAD.format(folder=folder) + yaml.safe_dump(job, sort_keys=False, width=110)


if __name__ == "__main__":
    for overlay in OVERLAYS.values():
        template_file(overlay).write_text(rendered(overlay.folder))
