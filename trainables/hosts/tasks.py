"""Tasks of a host: evaluations of the bare base, or of a trained trial, on the warm base."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainables.errors import BundleError, DamagedFolderError, SpecError
from trainables.hosts.bench import Bench, Failure, attempt
from trainables.hosts.orders import TaskOrder, TaskReport
from trainables.hosts.progress import find_progress, lost_state
from trainables.hosts.storage import fetch_folder, writing_folder
from trainables.spec import TrialSpec


def do_task(bench: Bench, order: TaskOrder) -> TaskReport:
    """Carry out a task; its failure is part of the report."""
    metrics = attempt(lambda: _evaluate(bench, order))
    if isinstance(metrics, Failure):
        return TaskReport(task_id=order.task_id, error=metrics.reason)
    return TaskReport(task_id=order.task_id, metrics=metrics)


def _evaluate(bench: Bench, order: TaskOrder) -> dict[str, float]:
    task = order.task
    spec = TrialSpec.from_dict(task.spec)
    if task.state_dir is None:
        return _named(bench.engine.evaluate_base(spec, task.split), task.split)
    state, known = _load_trained(bench, task.state_dir, task.bundle_dir, spec)
    seat = f"task-{order.task_id}"
    bench.engine.join(seat, spec, state)
    try:
        metrics = _named(bench.engine.evaluate(seat, task.split), task.split)
        if task.bundle_dir is not None:
            with writing_folder(task.bundle_dir) as folder:
                bench.engine.export(seat, folder, {**known, **metrics})
    finally:
        bench.engine.leave(seat)
    return metrics


def _load_trained(
    bench: Bench, state_dir: str, bundle_dir: str | None, spec: TrialSpec
) -> tuple[Any, Mapping[str, Any]]:
    """A trained trial and its last report; from its bundle if the newest state is damaged.

    Raises:
        StateError: The newest state is damaged, and no sound bundle is of its step.
        SpecError: There is neither a state nor a bundle.
    """
    with find_progress(state_dir, spec) as found:
        if found.folder is not None and not found.damaged:
            return bench.load_state(found.folder), found.reports[-1]
        damaged = found.damaged
    with (
        tempfile.TemporaryDirectory(prefix="lorchestra-") as temporary,
        suppress(BundleError, DamagedFolderError),
    ):
        bundle = None if bundle_dir is None else fetch_folder(bundle_dir, Path(temporary))
        if bundle is not None:
            state, known = bench.load_bundle(bundle, spec)
            if not damaged or state.step == damaged[0]:
                return state, known
    if damaged:
        raise lost_state(state_dir, damaged[0])
    raise SpecError(
        f"task.state_dir: got {state_dir!r}; allowed: a folder with a saved state. Train the "
        "trial to its first report."
    )


def _named(metrics: Mapping[str, float], split: str) -> dict[str, float]:
    """Metrics named after the split; `test_*` metrics never compare trials."""
    if split == "validation":
        return {name: float(value) for name, value in metrics.items()}
    return {name.replace("eval_", "test_", 1): float(value) for name, value in metrics.items()}
