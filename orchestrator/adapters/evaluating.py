"""Evaluates registered versions on any rows, in Ray workers, and records the results."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray

from orchestrator.errors import SweepError
from orchestrator.hosts.evaluators import (
    EvaluationOrder,
    FormResult,
    WorkerShape,
    evaluate_adapters,
    read_files,
    require_gpu_of_ray,
    write_files,
)
from orchestrator.spec.complaint import require
from orchestrator.spec.finals_sections import same_form
from registry import AdapterVersion, Registry
from trainables.contract import SERVING_FORMS, TRAINED
from trainables.evaluation_spec import EvaluationSpec
from trainables.files.sources import read_rows
from trainables.rows.splits import RawSplit
from trainables.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows to evaluate on.

    Attributes:
        name: Name of the rows in evaluations: a file's name or a split.
        rows: The rows as dictionaries.
        read_as: Data spec that says how to read the columns; `None` where the columns or the
            adapter's own manifest decide.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    read_as: DataSpec | None = None

    @classmethod
    def of_file(cls, path: Path) -> Rows:
        """All rows of a file.

        Raises:
            SweepSpecError: The file does not exist.
            DataError: The file cannot be read.
        """
        require(
            path.is_file(),
            "--data",
            str(path),
            "a file of rows, such as .jsonl, .csv or .parquet",
            "Correct the path.",
        )
        found = read_rows(str(path.absolute()), "--data")
        return cls(name=path.name, rows=tuple(row.values for row in found))

    @classmethod
    def of_split(cls, split: RawSplit, name: str, spec: DataSpec) -> Rows:
        """The rows of a split of a spec."""
        return cls(name=name, rows=tuple(row.values for row in split.rows), read_as=spec)

    @property
    def source(self) -> DataSpec:
        """Data spec with these rows as `train`, read like `read_as`."""
        rows = tuple(dict(row) for row in self.rows)
        if self.read_as is None:
            return DataSpec(train=rows)
        read = self.read_as
        return DataSpec(
            train=rows,
            format=read.format,
            columns=read.columns,
            prompt_template=read.prompt_template,
        )


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates versions on one set of rows and records the results.

    Attributes:
        rows: Rows to evaluate on.
        how: Measures and limits.
        adapters: The registry.
        shape: Resources of a worker on the running Ray.
        forms: Serving forms; empty for the recorded form of each version.
        base_model: Location of the base, if it differs from the recorded location.
    """

    rows: Rows
    how: EvaluationSpec
    adapters: Registry
    shape: WorkerShape
    forms: tuple[str, ...] = ()
    base_model: str | None = None

    def evaluate_bundles(
        self, bundles: Mapping[str, Path], forms: Sequence[str]
    ) -> Iterator[FormResult]:
        """Evaluate local bundles in the forms, without recording the results.

        Args:
            bundles: Folders of the bundles, by the key of their results.
            forms: Serving forms.
        """
        yield from self._evaluate(
            {key: self._order(bundle, tuple(forms)) for key, bundle in bundles.items()}
        )

    def evaluate(self, versions: Sequence[AdapterVersion]) -> Iterator[FormResult]:
        """Evaluate versions and record the results; a result's key is the version's reference.

        Raises:
            RegistryError: A version cannot be read, or an evaluation cannot be recorded.
        """
        with tempfile.TemporaryDirectory() as work:
            orders = {}
            for number, version in enumerate(versions):
                forms = self._forms_of(version)
                folder = self.adapters.pull(version.ref, Path(work) / str(number))
                orders[str(version.ref)] = self._order(folder, forms)
        for result in self._evaluate(orders):
            if result.document is not None:
                self.adapters.record_evaluation(result.key, result.document)
            yield result

    def _evaluate(self, orders: Mapping[str, EvaluationOrder]) -> Iterator[FormResult]:
        for result in evaluate_adapters(orders, self.shape):
            if result.document is not None:
                result.document["data"]["name"] = self.rows.name
            yield result

    def _order(self, bundle: Path, forms: tuple[str, ...]) -> EvaluationOrder:
        return EvaluationOrder(
            files=read_files(bundle),
            forms=forms,
            source=self.rows.source,
            how=self.how,
            base_model=self.base_model,
        )

    def _forms_of(self, version: AdapterVersion) -> tuple[str, ...]:
        wanted = self.forms or (version.form,)
        if version.tags.get("base.prequantized") == "True":
            kept = tuple(form for form in wanted if form == TRAINED)
            why = f"trained for {version.ref}, because its base has no unquantized weights"
            require(bool(kept), "--forms", ", ".join(wanted), why, "Evaluate it in that form.")
            return kept
        stored = version.tags.get("quantization", "")
        return tuple(dict.fromkeys(same_form(form, stored) for form in wanted))


@dataclass(frozen=True, kw_only=True)
class HarnessRun:
    """Tasks of the evaluation harness to run on versions.

    Attributes:
        tasks: Names of the tasks.
        include_path: Folder with definitions of tasks, at the same path on every node.
        limit: Maximum number of examples of each task.
        form: Serving form; `None` for the recorded form of each version.
        base_model: Location of the base, if it differs from the recorded location.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    form: str | None = None
    base_model: str | None = None

    def run(
        self, versions: Sequence[AdapterVersion], adapters: Registry, shape: WorkerShape
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Run the tasks on each version in turn, and record and yield the results.

        Raises:
            SweepError: A task failed.
            RegistryError: A version cannot be read, or the results cannot be recorded.
        """
        worker = ray.remote(_run_harness).options(**shape.options())
        for version in versions:
            with tempfile.TemporaryDirectory() as work:
                folder = adapters.pull(version.ref, Path(work) / "bundle")
                files = read_files(folder)
            form = self.form or version.form
            try:
                results = ray.get(worker.remote(files, form, self))
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                raise SweepError(f"{version.ref}: {cause}") from error
            adapters.record_harness(version.ref, results)
            yield str(version.ref), results


def _run_harness(files: Mapping[str, bytes], form: str, order: HarnessRun) -> dict[str, Any]:
    from trainables.evaluation.harness import run_harness

    require_gpu_of_ray()
    with tempfile.TemporaryDirectory() as folder:
        write_files(files, Path(folder))
        return run_harness(
            Path(folder),
            cast("Any", form),
            order.tasks,
            include_path=order.include_path,
            limit=order.limit,
            base_model=order.base_model,
        )


def require_forms(forms: Sequence[str]) -> None:
    """Refuse unknown serving forms.

    Raises:
        SweepSpecError: A form is unknown.
    """
    for form in forms:
        require(
            form in SERVING_FORMS, "--forms", form, ", ".join(SERVING_FORMS), "Choose from these."
        )
