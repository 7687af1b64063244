"""Registered versions are measured by workers, and what was found is kept with them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.adapters.evaluating import Evaluator, HarnessRun, Rows
from orchestrator.adapters.shrinking import shrink_version
from orchestrator.adapters.terminal import render_shrunk
from orchestrator.hosts.cluster import shape_of_workers
from registry import Registry
from registry.tracking.connection import connect
from trainables.evaluation_spec import EvaluationSpec

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("rows") / "more.jsonl"
    lines = [{"prompt": f"{letter * 3} ->", "completion": " x"} for letter in "abcdef"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Rows.of_file(path)


@pytest.fixture(scope="module")
def version(real_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    uri = f"sqlite:///{tmp_path_factory.mktemp('evaluating') / 'mlflow.db'}"
    found = Registry(uri).register(real_bundle, "letters")
    return found, uri


@pytest.fixture(scope="module")
def evaluator(local_ray: None, rows: Rows, version: Any) -> Evaluator:
    how = EvaluationSpec()
    return Evaluator(rows=rows, how=how, adapters=Registry(version[1]), shape=shape_of_workers())


def test_a_version_is_measured_and_keeps_it(evaluator: Evaluator, version: Any) -> None:
    found, uri = version
    (result,) = evaluator.evaluate([found])
    assert (result.key, result.form, result.error) == ("letters/1", "trained", "")
    (kept,) = Registry(uri).evaluations("letters/1")
    assert (kept.data.name, kept.data.rows) == ("more.jsonl", 6)
    assert kept.measures["loss"].value == result.document["measures"]["loss"]["value"]


def test_the_smallest_rank_that_is_good_enough_is_registered(
    evaluator: Evaluator, version: Any
) -> None:
    found, uri = version
    shrunk = shrink_version(found, [1, 2], evaluator, tolerance=1e6)
    assert shrunk.chosen == 1
    assert [one.rank for one in shrunk.candidates] == [2, 1]
    assert shrunk.whole.energy == pytest.approx(1.0)
    sizes = [one.adapter_bytes for one in (shrunk.whole, *shrunk.candidates)]
    assert sizes == sorted(sizes, reverse=True)
    smaller = Registry(uri).get("letters/2")
    assert smaller.tags["lora.rank"] == "1"
    assert smaller.tags["lorchestra.shrunk_from"] == "letters/1"
    (kept,) = Registry(uri).evaluations(smaller.ref)
    assert kept.data.name == "more.jsonl"
    assert kept.measures["loss"].value == shrunk.candidates[1].value
    assert "registered: letters/2, rank 1" in render_shrunk(found, shrunk, "loss").renderables
    # a search that begins from versions takes none that was never trained as it is
    assert len(Registry(uri).best_specs("letters")) == 1


@pytest.mark.parametrize("rank", [0, 4, 9])
def test_a_rank_that_is_not_lower_is_refused(
    evaluator: Evaluator, version: Any, rank: int
) -> None:
    with pytest.raises(ValueError, match=rf"--ranks: got {rank}; allowed: 1 to 3"):
        shrink_version(version[0], [rank], evaluator)


def test_tasks_of_the_harness_are_run_and_kept(
    evaluator: Evaluator, version: Any, tmp_path: Path
) -> None:
    found, uri = version
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": letter, "a": 0}) + "\n" for letter in "abcd"))
    task = {
        "task": "which_letter",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}} ->",
        "doc_to_choice": ["x", "y"],
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "which_letter.yaml").write_text(yaml.safe_dump(task))
    order = HarnessRun(tasks=("which_letter",), include_path=tmp_path)
    ((ref, results),) = order.run([found], Registry(uri), evaluator.shape)
    value = results["tasks"]["which_letter"]["metrics"]["acc"]["value"]
    assert (ref, 0.0 <= value <= 1.0) == ("letters/1", True)
    client = connect(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`lorchestra.kind` = 'harness'")
    assert run.data.metrics["which_letter/acc"] == value
