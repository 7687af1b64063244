"""Commits of the hub's repositories that a sweep reads, pinned at the first start.

A branch can move while a sweep is interrupted. Without pins, trials before and after would have
different rows or bases, and could not be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from orchestrator.spec.inputs import SPLITS
from orchestrator.spec.sweep import SweepSpec
from trainables.base.hub import dataset_commit, is_commit, model_commit
from trainables.base.presence import is_hub_model
from trainables.files.sources import is_local
from trainables.spec import BaseSpec, DataSpec


def settle_pins(spec: SweepSpec, known: Mapping[str, str]) -> tuple[SweepSpec, dict[str, str]]:
    """The sweep with commits in place of branches and tags, and these commits.

    Args:
        spec: The sweep as the user wrote it; rows in memory have been saved.
        known: Commits of an earlier start, by kind, name and revision of the repository:
            `dataset owner/name@main`. Known commits hold, even if the branch has moved.
    """
    pins = {name: commit for name, commit in _wanted(spec, known).items() if commit is not None}
    data: dict[str, Any] = {
        split: f"{_name_of(source)}@{commit}"
        for split in SPLITS
        if isinstance(source := getattr(spec.data, split), str)
        and (commit := pins.get(_dataset_key(spec.data, source)))
    }
    # If the sweep searches the base, the base is pinned when a trial is built.
    is_varied = "base.model" in spec.search_space.knobs
    return (
        dataclasses.replace(
            spec,
            data=dataclasses.replace(spec.data, **data) if data else spec.data,
            base=spec.base if is_varied else pinned_base(spec.base, pins),
        ),
        pins,
    )


def pinned_base(base: BaseSpec, pins: Mapping[str, str]) -> BaseSpec:
    """The base at its commit in `pins`; unchanged if `pins` has no commit of the base."""
    commit = pins.get(_base_key(base))
    return base if commit is None else dataclasses.replace(base, revision=commit)


def _wanted(spec: SweepSpec, known: Mapping[str, str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for split in SPLITS:
        source = getattr(spec.data, split)
        if isinstance(source, str) and not is_local(source):
            revision = _revision_of(spec.data, source)
            key = _dataset_key(spec.data, source)
            if not is_commit(revision):
                found[key] = known.get(key) or dataset_commit(_name_of(source), revision)
    if "base.revision" in spec.search_space.knobs:  # revisions are chosen by the user
        return found
    for base in spec.bases:
        if is_hub_model(base.model) and not is_commit(base.revision):
            key = _base_key(base)
            found[key] = known.get(key) or model_commit(base.model, base.revision)
    return found


def _name_of(source: str) -> str:
    return source.partition("@")[0]


def _revision_of(data: DataSpec, source: str) -> str | None:
    return source.partition("@")[2] or data.revision


def _dataset_key(data: DataSpec, source: str) -> str:
    return f"dataset {_name_of(source)}@{_revision_of(data, source) or 'main'}"


def _base_key(base: BaseSpec) -> str:
    return f"base {base.model}@{base.revision or 'main'}"
