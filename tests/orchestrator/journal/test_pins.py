"""A sweep reads one commit from the hub, even if the branch moves."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from orchestrator.journal.history import SweepHistory
from orchestrator.journal.pins import pinned_base, settle_pins
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.spec.sweep import SweepSpec, parse_sweep

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40


def sweep(folder: Path, base: str = "owner/base", **data: str) -> SweepSpec:
    values = {
        "name": "tiny",
        "base": {"model": base},
        "data": data,
        "optim": {"steps": 20},
        "space": {"lora.rank": {"choice": [2, 4]}},
        "budget": {"trials": 2},
    }
    return parse_sweep(values, folder)


KNOWN = {
    "dataset owner/rows@main": OLD,
    "dataset owner/rows@v2": NEW,
    "base owner/base@main": OTHER,
}


def test_commits_of_an_earlier_start_hold(tmp_path: Path) -> None:
    spec = sweep(tmp_path, train="owner/rows", test="owner/rows@v2")
    pinned, pins = settle_pins(spec, KNOWN)
    assert pinned.data.train == f"owner/rows@{OLD}"
    assert pinned.data.test == f"owner/rows@{NEW}"
    assert pinned.base.revision == OTHER
    assert pins == KNOWN
    assert settle_pins(spec, KNOWN)[0].digest == pinned.digest != spec.digest


def test_what_is_pinned_already_stays(tmp_path: Path) -> None:
    pinned, _ = settle_pins(sweep(tmp_path, train="owner/rows", test="owner/rows@v2"), KNOWN)
    assert settle_pins(pinned, {}) == (pinned, {})


def test_each_of_several_bases_has_its_commit(tmp_path: Path) -> None:
    values = sweep(tmp_path, train="owner/rows").to_dict()
    values["space"] = {"base.model": {"choice": ["owner/base", "owner/large"]}}
    known = {**KNOWN, "base owner/large@main": NEW}
    spec, pins = settle_pins(parse_sweep(values, tmp_path), known)
    assert (spec.base.revision, len(pins)) == (None, 3)
    assert [pinned_base(base, pins).revision for base in spec.bases] == [OTHER, NEW]

    history = SweepHistory(pins=pins)
    searcher = OptunaSearcher(spec, history, {"storage": "there"})
    for number in range(2):
        base = searcher.suggest(f"ray-{number}")["spec"]["base"]
        assert base["revision"] == {"owner/base": OTHER, "owner/large": NEW}[base["model"]]


def test_files_need_no_commit(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    spec = sweep(tmp_path, train="rows.jsonl")
    pinned, pins = settle_pins(spec, KNOWN)
    assert pinned.data == spec.data
    assert list(pins) == ["base owner/base@main"]


@pytest.fixture
def hub() -> Iterator[str]:
    """A server that answers the hub's requests for commits of datasets and models."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"id": "owner/rows", "sha": NEW}).encode()
            self.send_response(200 if self.path.startswith("/api/datasets/owner/rows") else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            is_base = self.path.startswith("/owner/base/resolve/")
            self.send_response(200 if is_base else 404)
            self.send_header("X-Repo-Commit", OTHER)
            self.send_header("ETag", '"one"')
            self.send_header("Content-Length", "2")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_hub_is_asked_for_the_commit_of_a_dataset(hub: str, tmp_path: Path) -> None:
    # The address is read when the hub's client is imported: a process of its own.
    code = (
        "from trainables.base.hub import dataset_commit as ask\n"
        f"print(ask('owner/rows', None), ask('owner/none', None), ask('owner/rows', {OLD!r}))"
    )
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [NEW, "None", OLD]
