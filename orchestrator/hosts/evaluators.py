"""Evaluation of adapters in their serving forms, row by row, by separate worker processes.

A worker is a Ray actor that loads base and adapter as a server would, through PEFT. If a worker
dies (an unquantized base can be too large for the device), only the form in work is lost: the next
form gets a new worker.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

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
    waiting = deque((key, form) for key, order in orders.items() for form in order.forms)
    shared = {key: ray.put(order) for key, order in orders.items()}
    lost: set[tuple[str, str]] = set()
    idle: list[ActorHandle] = []
    running: dict[ray.ObjectRef, tuple[ActorHandle, str, str]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < shape.workers:
                worker = idle.pop() if idle else evaluator.remote()
                key, form = waiting.popleft()
                on_begin(key, form, len(running))
                running[worker.evaluate.remote(shared[key], form)] = (worker, key, form)
            (ready,), _ = ray.wait(list(running), num_returns=1)
            worker, key, form = running.pop(ready)
            result = _take(ready, key, form)
            if not result.is_lost:
                idle.append(worker)
            elif (key, form) not in lost:  # perhaps the cluster lost the node
                lost.add((key, form))
                waiting.append((key, form))
                continue
            yield result
    finally:
        # After an error of the caller this may come late: a call of Ray would start another one.
        if ray.is_initialized():
            for worker in (*idle, *(worker for worker, *_ in running.values())):
                ray.kill(worker)


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
    """Loads and evaluates adapters in a separate process."""

    def evaluate(self, order: EvaluationOrder, form: str) -> dict[str, Any]:
        """The evaluation document of an adapter in one form."""
        from trainables.evaluation.evaluate import evaluate_bundle

        require_gpu_of_ray()
        with tempfile.TemporaryDirectory() as folder:
            write_files(order.files, Path(folder))
            (document,) = evaluate_bundle(
                Path(folder), (form,), order.source, order.how, base_model=order.base_model
            )
        return document


def _one_line(error: BaseException) -> str:
    said = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {said[0]}"
