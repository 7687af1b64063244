"""Workers evaluate real adapters in serving forms; a failure affects one form only."""

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts.cluster import shape_of_workers
from orchestrator.hosts.evaluators import (
    EvaluationOrder,
    FormResult,
    evaluate_adapters,
    ordered_work,
    read_files,
    take_next,
)
from trainables.contract import SERVING_FORMS
from trainables.evaluation.evaluate import evaluate_bundle
from trainables.evaluation.serving import forms_of
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


def order_of(base: dict[str, Any] | None, *forms: str) -> EvaluationOrder:
    files = {} if base is None else {"manifest.json": json.dumps({"base": base}).encode()}
    return EvaluationOrder(files=files, forms=forms, source=ROWS, how=EvaluationSpec())


def base_record(quantization: str, digest: str = "sha256:1") -> dict[str, Any]:
    return {
        "digest": digest,
        "compute_dtype": "float32",
        "quantization": quantization,
        "double_quant": True,
    }


def test_work_is_ordered_by_base_then_form_then_adapter() -> None:
    orders = {
        "a": order_of(base_record("nf4"), *SERVING_FORMS),
        "other": order_of(base_record("nf4", "sha256:2"), "trained", "merged"),
        "b": order_of(base_record("fp4"), *SERVING_FORMS),
        "c": order_of(base_record("nf4"), *reversed(SERVING_FORMS)),
        "plain": order_of(base_record("none"), "trained", "merged"),
        "no manifest": order_of(None, "trained"),
    }
    found = [f"{one.form} {one.key}" for one in ordered_work(orders)]
    assert found == [
        "trained b", "trained a", "trained c", "trained plain",
        "unquantized a", "unquantized b", "unquantized c",
        "merged a", "merged b", "merged c", "merged plain",
        "requantized b", "requantized a", "requantized c",
        "trained other", "merged other",
        "trained no manifest",
    ]  # fmt: skip


def test_a_base_is_loaded_once_in_this_order() -> None:
    orders = {
        name: order_of(base_record(kind), *forms_of({"quantization": kind}))
        for name, kind in (("a", "nf4"), ("b", "none"), ("c", "nf4"), ("d", "fp4"))
    }
    loaded = [base for base, _ in groupby(one.base for one in ordered_work(orders))]
    assert len(loaded) == len(set(loaded)) == 5  # nf4, fp4, none, and two to requantize


def test_a_worker_gets_work_for_its_base_first() -> None:
    orders = {name: order_of(base_record(name), "trained") for name in ("fp4", "nf4")}
    orders["again"] = order_of(base_record("nf4"), "trained")
    waiting = ordered_work(orders)
    assert [one.key for one in waiting] == ["fp4", "nf4", "again"]
    nf4 = waiting.pop(1)
    assert take_next(waiting, nf4).key == "again"
    assert take_next(waiting, nf4).key == "fp4"
    assert waiting == []


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
