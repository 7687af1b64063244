"""What is known of a sweep's rows before anything is started, for each base that it names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from orchestrator.spec.distributions import Choice
from orchestrator.spec.sweep import SweepSpec
from trainables.rows.inspection import inspect_data
from trainables.rows.splits import read_raw_splits
from trainables.spec import BaseSpec


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a terminal, a log and a report say of the rows.

    Attributes:
        lines: A sentence each; those that hold for one base of several name it.
        facts: The same as plain values, by base.
    """

    lines: tuple[str, ...]
    facts: dict[str, Any]


def inspect_rows(spec: SweepSpec) -> DataReport:
    """Read, check, part and measure the rows of a sweep; no weights are loaded.

    Raises:
        DataError: A source or row cannot be used.
        BaseModelError: A base has no tokenizer that can be read.
    """
    raw = read_raw_splits(spec.data)
    found = {
        base.model: inspect_data(base, spec.data, raw, spec.eval.max_rows)
        for base in bases_of(spec)
    }
    said = {model: summary.lines() for model, summary in found.items()}
    shared = [
        line for line in next(iter(said.values())) if all(line in one for one in said.values())
    ]
    own = [
        f"With {model}: {line}"
        for model, lines in said.items()
        for line in lines
        if line not in shared
    ]
    return DataReport(
        lines=(*shared, *own),
        facts={model: summary.to_dict() for model, summary in found.items()},
    )


def bases_of(spec: SweepSpec) -> list[BaseSpec]:
    """Every base that a trial of the sweep may have, in the order of the choices."""
    knob = spec.search_space.knobs.get("base.model")
    models = knob.values if isinstance(knob, Choice) else (spec.base.model,)
    return [dataclasses.replace(spec.base, model=model) for model in models]
