"""Results of harness tasks are kept once for each version and way of asking."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.errors import IntegrityError


def results(adapter: str, acc: float = 0.5, limit: int | None = None) -> dict[str, Any]:
    metrics = {
        "acc": {"value": acc, "stderr": 0.1, "higher_is_better": True},
        "exact_match,strict": {"value": 0.25, "stderr": None, "higher_is_better": True},
    }
    task = {"version": 1, "num_fewshot": 0, "rows": 8, "metrics": metrics}
    return {
        "adapter": adapter, "form": "trained", "limit": limit, "tasks": {"letters": task},
        "packages": {"lm_eval": "0.4.13"},
    }  # fmt: skip


def test_results_are_kept_once_with_their_version(
    adapters: Registry, client: MlflowClient, new_bundle: Callable[..., Path], name: str
) -> None:
    version = adapters.register(new_bundle(), name)
    first = adapters.record_harness(name, results(version.digest))
    assert adapters.record_harness(name, results(version.digest)) == first
    fewer = adapters.record_harness(name, results(version.digest, limit=2))
    assert fewer != first
    run = client.get_run(first)
    assert run.data.metrics == {
        "letters/acc": 0.5, "letters/acc.stderr": 0.1, "letters/exact_match.strict": 0.25,
    }  # fmt: skip
    assert (run.info.status, run.data.params["tasks"]) == ("FINISHED", "letters")
    assert [file.path for file in client.list_artifacts(first)] == ["harness.json"]


def test_results_of_another_adapter_are_refused(
    adapters: Registry, new_bundle: Callable[..., Path], name: str
) -> None:
    adapters.register(new_bundle(), name)
    with pytest.raises(IntegrityError, match="to the adapter sha256:no"):
        adapters.record_harness(name, results("sha256:no"))
