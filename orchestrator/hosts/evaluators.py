"""Evaluation of adapters in their serving forms, row by row, by separate worker processes.

A worker is a Ray actor that serves base and adapter as a server would, through PEFT. It keeps its
base for the next adapter. So work is ordered by base, and a worker gets work for its base first.
If a worker dies (an unquantized base can be too large for the device), only the form in work is
lost: the next form gets a new worker.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from trainables.contract import MANIFEST, SERVING_FORMS
from trainables.evaluation.rows import RowSource
from trainables.evaluation_spec import EvaluationSpec


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """An adapter to evaluate.

    Attributes:
        files: Names and contents of the bundle's files: a worker can be on another machine.
        forms: Serving forms to evaluate.
        source: A split of the training data, or rows.
        how: Settings of the evaluation.
        base_model: Location of the base, if the bundle's is not valid here.
    """

    files: Mapping[str, bytes]
    forms: tuple[str, ...]
    source: RowSource
    how: EvaluationSpec
    base_model: str | None = None


class FormResult(NamedTuple):
    """Result for an adapter in a serving form: an evaluation document or an error.

    Attributes:
        is_lost: The worker died, perhaps for a reason other than the adapter.
    """

    key: str
    form: str
    document: dict[str, Any] | None
    error: str
    is_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerShape:
    """Number of evaluation workers and resources of each."""

    workers: int
    cpus: float
    gpus: float
    torch_threads: int

    @property
    def all_cpus(self) -> int:
        """Cores that the workers keep busy."""
        return self.torch_threads * self.workers

    @property
    def all_gpus(self) -> float:
        """GPUs of all workers."""
        return self.gpus * self.workers

    def options(self) -> dict[str, Any]:
        """Ray's options for a task or an actor of this shape."""
        # By default, Ray sets torch's threads to the number of CPUs requested.
        threads = {"OMP_NUM_THREADS": str(self.torch_threads)}
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "runtime_env": {"env_vars": threads},
        }


def read_files(bundle: Path) -> dict[str, bytes]:
    """A bundle's files, for an order."""
    return {path.name: path.read_bytes() for path in sorted(bundle.iterdir())}


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write a bundle's files into an existing folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


def evaluate_adapters(
    orders: Mapping[str, EvaluationOrder],
    shape: WorkerShape,
    on_begin: Callable[[str, str, int], None] = lambda key, form, running: None,
) -> Generator[FormResult, None, None]:
    """Evaluate every adapter in each serving form; yields results as workers finish.

    If a worker dies, its form is tried once more after the other forms. Closing the generator
    ends the workers.

    Args:
        orders: Adapters to evaluate, by the keys of the results.
        shape: Number and resources of the workers.
        on_begin: Called with the key, the form and the number of evaluations in work, before an
            evaluation begins.
    """
    evaluator = ray.remote(_Evaluator).options(**shape.options())
    waiting = ordered_work(orders)
    shared = {key: ray.put(order) for key, order in orders.items()}
    lost: set[Work] = set()
    idle: list[tuple[ActorHandle, Work | None]] = []
    running: dict[ray.ObjectRef, tuple[ActorHandle, Work]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < shape.workers:
                worker, last = idle.pop() if idle else (evaluator.remote(), None)
                work = take_next(waiting, last)
                on_begin(work.key, work.form, len(running))
                running[worker.evaluate.remote(shared[work.key], work.form)] = (worker, work)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, work = running.pop(ready)
            result = _take(ready, work.key, work.form)
            if not result.is_lost:
                idle.append((worker, work))
            elif work not in lost:  # perhaps the cluster lost the node
                lost.add(work)
                waiting.append(work)
                continue
            yield result
    finally:
        # After an error of the caller this may come late: a call of Ray would start another one.
        if ray.is_initialized():
            for worker, _ in (*idle, *running.values()):
                ray.kill(worker)


class Work(NamedTuple):
    """An adapter to evaluate in a form.

    Attributes:
        base: Identity of the base and the stored form that is loaded for this work.
    """

    key: str
    form: str
    base: tuple[str, ...]


def ordered_work(orders: Mapping[str, EvaluationOrder]) -> list[Work]:
    """Adapters and forms in an order in which each base is loaded once.

    Adapters of one base and compute type are together. Forms of the unquantized base follow those
    of the stored forms, and requantized weights follow the merged ones that they are made of.
    """
    bases = {key: _base_of(order) for key, order in orders.items()}
    groups: dict[str, list[str]] = {}
    for key, base in bases.items():
        groups.setdefault(_group(base), []).append(key)
    work = []
    for group, keys in groups.items():
        steps = [
            Work(key, form, (group, _loaded_form(form, bases[key])))
            for key in keys
            for form in orders[key].forms
        ]
        steps.sort(key=_place)
        work += steps
    return work


def take_next(waiting: list[Work], last: Work | None) -> Work:
    """Remove the work that a worker gets next: the first for its base, else the first of all.

    Args:
        waiting: At least one.
        last: The last work of the worker; `None` for a new one.
    """
    same = (one for one in waiting if last is not None and one.base == last.base)
    chosen = next(same, waiting[0])
    waiting.remove(chosen)
    return chosen


def _place(work: Work) -> tuple[int, bool, tuple[str, ...]]:
    """Sort key; bases without quantization are last of the trained ones, beside `unquantized`."""
    forms: Sequence[str] = SERVING_FORMS
    place = forms.index(work.form) if work.form in forms else -1  # refused at once
    return place, work.base[-1] == _PLAIN, work.base


_PLAIN = "none"


def _base_of(order: EvaluationOrder) -> Mapping[str, Any]:
    """The base's record in an order's manifest; empty for one that its worker will refuse."""
    try:
        return dict(json.loads(order.files[MANIFEST])["base"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}


def _group(base: Mapping[str, Any]) -> str:
    return f"{base.get('digest')} {base.get('compute_dtype')}"


def _loaded_form(form: str, base: Mapping[str, Any]) -> str:
    """Name of what is loaded for a serving form; equal for work that shares a loaded base."""
    if form in ("unquantized", "merged") or base.get("quantization") == _PLAIN:
        return _PLAIN
    return f"{form} {base.get('quantization')} {base.get('double_quant')}"


def _take(ready: Any, key: str, form: str) -> FormResult:
    """The document of a worker, or the error of a failed or lost worker."""
    try:
        return FormResult(key, form, ray.get(ready), "")
    except ray.exceptions.RayTaskError as error:
        return FormResult(key, form, None, _one_line(error.cause))
    except ray.exceptions.RayError as error:
        reason = f"its worker died, perhaps out of memory ({_one_line(error)})"
        return FormResult(key, form, None, reason, is_lost=True)


def require_gpu_of_ray() -> None:
    """Raise `BaseModelError` if Ray assigned a GPU to this process and torch sees none."""
    from trainables.base.loading import require_gpu

    given = ray.get_runtime_context().get_accelerator_ids().get("GPU", ())
    require_gpu([str(one) for one in given])


class _Evaluator:
    """Evaluates adapters in a separate process, which keeps the base for the next adapter."""

    def __init__(self) -> None:
        self._evaluator: Any = None

    def evaluate(self, order: EvaluationOrder, form: str) -> dict[str, Any]:
        """The evaluation document of an adapter in one form."""
        from trainables.evaluation.evaluate import BundleEvaluator

        require_gpu_of_ray()
        if self._evaluator is None:
            self._evaluator = BundleEvaluator()
            # Modules stay: each collection would look at their million objects, for 0.3 s.
            gc.freeze()
        with tempfile.TemporaryDirectory() as folder:
            write_files(order.files, Path(folder))
            document: dict[str, Any] = self._evaluator.evaluate(
                Path(folder),
                form,
                order.source,
                order.how,
                base_model=order.base_model,
                later=order.forms,
            )
        return document


def _one_line(error: BaseException) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"
