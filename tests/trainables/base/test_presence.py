"""A base that cannot be had is refused within seconds, with the name that was meant."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.bases import DENSE, save_base
from trainables.base.base_summary import glance_at_base
from trainables.base.layers import describe_layers
from trainables.base.presence import is_hub_model, layers_of_files
from trainables.spec import BaseSpec

ASK = """
from trainables.base.presence import require_base
from trainables.errors import BaseModelError
from trainables.spec import BaseSpec
for revision in (None, "v9"):
    try:
        print(require_base(BaseSpec(model="owner/tinny", revision=revision)))
    except BaseModelError as error:
        print(error)
"""


ASK_OFFLINE = """
import os, time
from trainables.base.hub import model_commit
from trainables.base.presence import stay_offline
stay_offline()
started = time.monotonic()
print(model_commit("owner/tiny", None), model_commit("owner/none", None))
print(os.environ["HF_HUB_OFFLINE"], time.monotonic() - started < 2)
"""


def ask(hub: str, home, code: str = ASK, **environment: str) -> str:
    # The address of the hub is read when its client is imported: a process of its own.
    kept = home / "hub/models--owner--tiny/snapshots/a"
    kept.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "Retrying" not in done.stderr
    return done.stdout


@pytest.fixture
def hub() -> Iterator[str]:
    """A hub that refuses each request, with the reason in the header that the real one sends."""

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            code = "RevisionNotFound" if "/v9/" in self.path else "RepoNotFound"
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_hub_that_does_not_have_the_base_is_asked_once_and_cited(hub, tmp_path):
    first, second = ask(hub, tmp_path).splitlines()
    assert first.startswith(f"base.model: got 'owner/tinny', which the hub at {hub} does not have")
    assert first.endswith("Did you mean owner/tiny?")
    assert second.startswith("base.revision: got 'v9', which 'owner/tinny' does not have")


def test_a_hub_that_is_away_costs_no_retries(tmp_path):
    started = time.monotonic()
    said = ask("http://127.0.0.1:9", tmp_path)
    assert time.monotonic() - started < 12  # huggingface_hub alone retries for 23 s a file
    assert "the hub cannot be reached (127.0.0.1: connection refused)" in said
    assert "Did you mean owner/tiny?" in said
    assert "HF_HUB_OFFLINE is set" in ask("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")


def test_a_process_that_stays_offline_reads_the_cache_at_once(tmp_path):
    commit, kept = "a" * 40, tmp_path / "hub/models--owner--tiny"
    for file, text in ((f"snapshots/{commit}/config.json", "{}"), ("refs/main", commit)):
        (kept / file).parent.mkdir(parents=True)
        (kept / file).write_text(text)
    said = ask("http://127.0.0.1:9", tmp_path, ASK_OFFLINE)
    assert said.split() == [commit, "None", "1", "True"]


@pytest.mark.parametrize("name", DENSE)
def test_layers_read_from_headers_are_those_of_the_built_model_or_left_open(
    name, tmp_path, byte_tokenizer
):
    base = BaseSpec(model=str(save_base(tmp_path, DENSE[name], "float32", byte_tokenizer)))
    built, found = describe_layers(base), layers_of_files(base)
    assert built is not None
    assert found is None or sorted(found) == sorted(built[0])
    assert found is not None or not name.startswith(("llama", "qwen", "mistral", "gemma", "phi"))


def test_layers_of_an_architecture_that_renames_its_weights_are_left_open(tiny_base, tmp_path):
    config = json.loads((tiny_base / "config.json").read_text()) | {"model_type": "mixtral"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert layers_of_files(BaseSpec(model=str(tmp_path))) is None


def test_a_target_that_the_base_lacks_is_known_from_its_header(tiny_base):
    refusal = glance_at_base(BaseSpec(model=str(tiny_base))).refusal(["q_prj"])
    assert "did you mean q_proj? Got 'q_prj', which is no linear layer of this base" in refusal


def test_paths_and_packages_are_no_hub_models(tiny_base):
    names = {str(tiny_base): False, "./x": False, "a.gguf": False, "package:a/b": False}
    assert {name: is_hub_model(name) for name in [*names, "owner/name"]} == {
        **names,
        "owner/name": True,
    }
