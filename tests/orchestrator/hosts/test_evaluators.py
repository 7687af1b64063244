"""Workers evaluate real adapters in serving forms; a failure affects one form only."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts.cluster import shape_of_workers
from orchestrator.hosts.evaluators import (
    EvaluationOrder,
    FormResult,
    evaluate_adapters,
    read_files,
)
from trainables.evaluation.evaluate import evaluate_bundle
from trainables.evaluation_spec import EvaluationSpec

pytestmark = pytest.mark.ray
ROWS = tuple({"prompt": f"{letter * 3} ->", "completion": " x"} for letter in "abcdef")


@pytest.fixture(scope="module")
def results(
    local_ray: None, real_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], FormResult]:
    """All cases in one call: starting workers takes most of the time."""
    metric = tmp_path_factory.mktemp("metric") / "deadly.py"
    metric.write_text("import os\n\ndef deadly(predictions, references):\n    os._exit(1)\n")

    def order(*forms: str, **how: Any) -> EvaluationOrder:
        files, how = read_files(real_bundle), EvaluationSpec(**how)
        return EvaluationOrder(files=files, forms=forms, source=ROWS, how=how)

    orders = {
        "fine": order("merged"),
        "unknown": order("no-such-form"),
        "deadly": order("trained", max_new_tokens=1, metrics=(f"{metric}:deadly",)),
        "after": order("trained"),
    }
    return {(one.key, one.form): one for one in evaluate_adapters(orders, shape_of_workers())}


def test_a_worker_finds_what_is_found_without_ray(results: Any, real_bundle: Path) -> None:
    (alone,) = evaluate_bundle(real_bundle, ("merged",), ROWS, EvaluationSpec())
    found = results["fine", "merged"]
    assert found.error == ""
    assert found.document["examples"] == alone["examples"]
    assert found.document["adapter"] == alone["adapter"]


def test_a_form_that_fails_costs_no_other(results: Any) -> None:
    assert "no-such-form" in results["unknown", "no-such-form"].error
    assert results["unknown", "no-such-form"].document is None


def test_a_worker_that_dies_costs_one_form(results: Any) -> None:
    assert "its worker died" in results["deadly", "trained"].error  # the second time, too
    assert results["deadly", "trained"].is_lost
    assert results["after", "trained"].document is not None


def test_a_caller_that_fails_and_forgets_the_results_starts_no_other_ray(
    real_bundle: Path,
) -> None:
    code = (
        "import sys, ray\n"
        "from pathlib import Path\n"
        "from orchestrator.hosts.cluster import ray_for_evaluation\n"
        "from orchestrator.hosts.evaluators import EvaluationOrder, evaluate_adapters\n"
        "from orchestrator.hosts.evaluators import read_files\n"
        "from trainables.evaluation_spec import EvaluationSpec\n"
        "files = read_files(Path(sys.argv[1]))\n"
        "rows = ({'prompt': 'a', 'completion': 'b'},)\n"
        "order = EvaluationOrder(files=files, forms=('no-such-form', 'trained'), source=rows,\n"
        "                        how=EvaluationSpec())\n"
        "with ray_for_evaluation() as shape:\n"
        "    results = evaluate_adapters({'one': order}, shape)\n"
        "    print(next(results).form)\n"
        "del results\n"
        "print(ray.is_initialized())\n"
    )
    kept = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(real_bundle)],
        env=kept | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["no-such-form", "False"], done.stderr
    assert "Traceback" not in done.stderr
