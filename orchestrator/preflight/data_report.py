"""Inspection of a sweep's bases and rows before the start."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from orchestrator.errors import SweepSpecError
from orchestrator.spec.distributions import Choice
from orchestrator.spec.inputs import SPLITS
from orchestrator.spec.sweep import SweepSpec
from trainables.base.base_summary import BaseSummary, glance_at_base, inspect_base
from trainables.base.shape import config_path
from trainables.files.sources import is_local
from trainables.rows.inspection import inspect_data
from trainables.rows.lengths import Lengths
from trainables.rows.splits import RawSplits, read_raw_splits

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """Sentences on bases and rows, for a terminal, a log and a report.

    Attributes:
        lines: One sentence each; a sentence on one base of several names the base.
        facts: The same as plain values, by base.
        lengths: Lengths of the rows in tokens, by base and split.
    """

    lines: tuple[str, ...]
    facts: dict[str, Any]
    lengths: Mapping[str, Mapping[str, Lengths]] = field(default_factory=dict)


def with_fetched_configs(spec: SweepSpec) -> SweepSpec:
    """The sweep, checked again after fetching the `config.json` of each hub base.

    Raises:
        SweepSpecError: A base is quantized already, in a form other than the requested one.
    """
    for base in spec.bases:
        try:
            config_path(base)
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            logger.info("the config.json of %s is not known: %s", base.model, error)
    return dataclasses.replace(spec)


def glance_at_bases(spec: SweepSpec) -> None:
    """Refuse bases that cannot be had, and targets that none of them has, within two seconds.

    Raises:
        SweepSpecError: No base has a layer that `lora.targets` names.
        BaseModelError: A base is neither on this machine nor on a hub that answers.
    """
    for _ in _check_targets(spec, [glance_at_base(base) for base in spec.bases]):
        pass  # inspect_inputs says which of several bases lacks a target


def read_local_rows(spec: SweepSpec) -> RawSplits | None:
    """The rows of a sweep with local data only; `None` if some rows are on a hub.

    Raises:
        DataError: A source or row cannot be used.
    """
    sources = [getattr(spec.data, name) for name in SPLITS]
    is_here = all(not isinstance(one, str) or is_local(one) for one in sources if one is not None)
    return read_raw_splits(spec.data) if is_here else None


def inspect_inputs(spec: SweepSpec, raw: RawSplits | None = None) -> DataReport:
    """Inspect the bases of a sweep, then check, split and summarize the rows.

    No weights are loaded.

    Args:
        spec: The sweep.
        raw: Rows of the sweep; `None` reads them.

    Raises:
        SweepSpecError: No base has a layer that `lora.targets` names.
        DataError: A source or row cannot be used.
        BaseModelError: A base cannot be trained on, or has no tokenizer that can be read.
    """
    bases = {base.model: inspect_base(base) for base in spec.bases}
    said_of_bases = [line for base in bases.values() for line in base.lines()]
    said_of_targets = list(_check_targets(spec, list(bases.values())))
    rows = _inspect_rows(spec, raw or read_raw_splits(spec.data))
    return DataReport(
        lines=(*said_of_bases, *said_of_targets, *rows.lines),
        facts={model: {**facts, **bases[model].to_dict()} for model, facts in rows.facts.items()},
        lengths=rows.lengths,
    )


def _check_targets(spec: SweepSpec, bases: Sequence[BaseSummary]) -> Iterator[str]:
    """Sentences on bases without the target layers; an error if all bases lack the layers."""
    knob = spec.search_space.knobs.get("lora.targets")
    values = list(knob.values) if isinstance(knob, Choice) else []
    is_varied = knob is not None and "lora.targets" not in spec.search_space.conditions
    for targets in values if is_varied else [*values, spec.lora.targets]:
        refused = {base.model: why for base in bases if (why := base.refusal(targets))}
        if len(refused) == len(bases):
            raise SweepSpecError(next(iter(refused.values())))
        for model, why in refused.items():
            yield f"With {model}: {why} Trials of this base with those targets will fail."


def _inspect_rows(spec: SweepSpec, raw: RawSplits) -> DataReport:
    """The report on rows: sentences that hold for all bases first."""
    found = {
        base.model: inspect_data(base, spec.data, raw, spec.eval.max_rows) for base in spec.bases
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
        lengths={
            model: {
                name: one.lengths
                for name, one in summary.splits.items()
                if one.lengths is not None
            }
            for model, summary in found.items()
        },
    )
