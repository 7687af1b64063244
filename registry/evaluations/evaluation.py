"""Evaluations of adapters: documents with one number per row, read and checked.

Training writes such a document for an adapter in a serving form on some rows. Every measure
follows from columns with one number per row, so evaluations are compared and resampled without
the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, get_args

import numpy as np

from registry.errors import IntegrityError
from trainables.contract import (
    COSTS,
    EVALUATION_FORMAT,
    SERVING_FORMS,
    Formula,
    Mode,
    Numbers,
    Scale,
)

# What MLflow takes in a metric's name: mlflow/utils/validation.py
_MEASURE_NAME = re.compile(r"[\w./ -]{1,250}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure over all rows of an evaluation.

    Attributes:
        value: The number; NaN where it could not be computed.
        formula: Formula of the value over the columns.
    """

    value: float
    formula: Formula


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The rows of an evaluation, and their tokenization.

    Attributes:
        digest: Digest of the rows as text, in order.
        name: `test`, `validation` or a file's name.
        rows: Number of rows.
        tokenizer_digest: Digest of the base's tokenizer.
        template_digest: Digest of the chat template, if prompts use one.
        prompt_style: `plain` or `chat`.
        max_tokens: Length at which rows were cut.
    """

    digest: str
    name: str
    rows: int
    tokenizer_digest: str | None
    template_digest: str | None
    prompt_style: str | None
    max_tokens: int | None

    @property
    def tokens_record(self) -> dict[str, Any]:
        """Settings that numbers per token depend on, besides the rows."""
        return {
            "tokenizer_digest": self.tokenizer_digest,
            "template_digest": self.template_digest,
            "prompt_style": self.prompt_style,
            "max_tokens": self.max_tokens,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation of an adapter in a serving form on some rows.

    Attributes:
        adapter: Digest of the adapter's bundle.
        form: Serving form.
        data: The rows.
        generation: Settings of text generation; `None` without generation.
        measures: Measures by name.
        examples: Columns with one entry per row, numbers or texts; empty when read without them.
        seconds: Duration.
        rows_per_s: Rows per second.
        tokens_per_s: Tokens per second.
        peak_memory_gib: Largest memory in use.
        model_bytes: Size of the base in this form.
        adapter_bytes: Size of the adapter beside the base.
        packages: Versions of the packages in use.
        run_id: MLflow run that keeps the evaluation; empty without one.
        at: Start of this run.
    """

    adapter: str
    form: str
    data: EvaluationData
    generation: Mapping[str, Any] | None
    measures: Mapping[str, Measure]
    examples: Mapping[str, tuple[Any, ...]] = field(repr=False)
    seconds: float | None
    rows_per_s: float | None
    tokens_per_s: float | None
    peak_memory_gib: float | None
    model_bytes: float | None
    adapter_bytes: float | None
    packages: Mapping[str, str]
    run_id: str = ""
    at: datetime | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Evaluation:
        """Read and check a document, including each measure against its columns.

        Raises:
            IntegrityError: The document has another format or contradicts itself.
        """
        evaluation = read_evaluation(document)
        for name, measure in evaluation.measures.items():
            _require_value(name, measure, evaluation)
        return evaluation

    @property
    def digest(self) -> str:
        """`sha256:` over adapter, form, rows and conditions, but not over the results."""
        identity = {
            "adapter": self.adapter,
            "form": self.form,
            "data": self.data.digest,
            "tokens": self.data.tokens_record,
            "generation": self.generation,
            "measures": sorted(self.measures),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def columns(self, measure: str) -> tuple[Numbers, Numbers]:
        """Numerator and denominator columns of a measure, each of shape (rows,).

        Raises:
            IntegrityError: There is no such measure, or the evaluation was read without examples.
        """
        if measure not in self.measures:
            raise IntegrityError(
                f"evaluation of {self.adapter}: got measure {measure!r}; allowed: "
                f"{', '.join(sorted(self.measures))}. Choose one of these."
            )
        formula = self.measures[measure].formula
        per = np.ones(self.data.rows) if formula.per is None else self._numbers(formula.per)
        return self._numbers(formula.of), per

    def _numbers(self, column: str) -> Numbers:
        if column not in self.examples:
            raise IntegrityError(
                f"evaluation of {self.adapter}: it has no column {column!r}; allowed: "
                f"{', '.join(sorted(self.examples)) or '(none were read)'}. "
                "Read it with its examples, or evaluate again."
            )
        numbers = self.examples[column]
        return np.array([math.nan if n is None else n for n in numbers], dtype=np.float64)


def read_evaluation(document: Mapping[str, Any]) -> Evaluation:
    """Read a document with or without columns; measures are not checked against the columns.

    Raises:
        IntegrityError: The document has another format.
    """
    if document.get("format") != EVALUATION_FORMAT:
        raise IntegrityError(
            f"evaluation: got format {document.get('format')!r}; allowed: {EVALUATION_FORMAT!r}. "
            "Evaluate again with this version."
        )
    try:
        records = {one.name: document["data"].get(one.name) for one in fields(EvaluationData)}
        costs: dict[str, Any] = {name: _number_or_none(document.get(name)) for name in COSTS}
        evaluation = Evaluation(
            adapter=document["adapter"],
            form=document["form"],
            data=EvaluationData(**records),
            generation=document["generation"],
            measures={name: _measure(one) for name, one in document["measures"].items()},
            examples={name: tuple(column) for name, column in document["examples"].items()},
            packages=dict(document.get("packages") or {}),
            **costs,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"evaluation: a record is missing or of another kind ({type(error).__name__}: "
            f"{error}); allowed: the document that an evaluation writes. Evaluate again."
        ) from error
    _require_known(evaluation)
    return evaluation


def _measure(record: Mapping[str, Any]) -> Measure:
    value = _number_or_none(record["value"])
    return Measure(
        value=math.nan if value is None else value,
        formula=Formula(
            of=record["of"], per=record["per"], scale=record["scale"], mode=record["mode"]
        ),
    )


def _number_or_none(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"got {value!r} where a number belongs")
    return float(value)


def _require_known(evaluation: Evaluation) -> None:
    """Refuse unknown forms, columns of another length and impossible names."""
    data = evaluation.data
    checks = {
        "adapter and data have digests": isinstance(evaluation.adapter, str)
        and isinstance(data.digest, str),
        f"form {evaluation.form!r} is one of {', '.join(SERVING_FORMS)}": evaluation.form
        in SERVING_FORMS,
        f"data has a name, not {data.name!r}": isinstance(data.name, str),
        f"data has rows, not {data.rows!r}": isinstance(data.rows, int) and data.rows > 0,
    }
    for name, column in evaluation.examples.items():
        checks[f"column {name} has {data.rows!r} entries, not {len(column)}"] = (
            len(column) == data.rows
        )
    for name, measure in evaluation.measures.items():
        checks[f"measure {name!r} has a name for a metric"] = bool(_MEASURE_NAME.fullmatch(name))
        scale, mode = measure.formula.scale, measure.formula.mode
        scales, modes = get_args(Scale), get_args(Mode)
        checks[f"measure {name} has a scale of {', '.join(scales)}, not {scale!r}"] = (
            scale in scales
        )
        checks[f"measure {name} has mode {' or '.join(modes)}, not {mode!r}"] = mode in modes
    broken = [claim for claim, holds in checks.items() if not holds]
    if broken:
        raise IntegrityError(
            f"evaluation of {evaluation.adapter}: not true: {'; '.join(broken)}; "
            "allowed: the document that an evaluation writes. Evaluate again."
        )


def _require_value(name: str, measure: Measure, evaluation: Evaluation) -> None:
    """Refuse a measure whose value does not follow from numbers in its columns."""
    formula = measure.formula
    for column in filter(None, (formula.of, formula.per)):
        for entry in evaluation.examples.get(column, ()):
            if entry is not None and not isinstance(entry, int | float):
                raise IntegrityError(
                    f"evaluation of {evaluation.adapter}: column {column} of measure {name} has "
                    f"the entry {entry!r}; allowed: numbers. Evaluate again."
                )
    of, per = evaluation.columns(name)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = float(formula.scaled(of.sum() / per.sum()))
    is_same = math.isclose(measure.value, expected, rel_tol=1e-3, abs_tol=1e-6)
    if not is_same and (math.isfinite(measure.value) or math.isfinite(expected)):
        raise IntegrityError(
            f"evaluation of {evaluation.adapter}: measure {name} has the value {measure.value:g}; "
            f"allowed: {expected:g}, as its rows give. Evaluate again."
        )
