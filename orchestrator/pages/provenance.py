"""What a sweep is about: base, data with rows and digests, time, versions and the sweep file."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import yaml

from orchestrator.journal.history import SweepHistory
from orchestrator.pages.markup import facts, folded, note, preformatted
from orchestrator.report.report import SweepReport
from orchestrator.spec.sweep import SweepSpec
from orchestrator.wording import format_duration, one_line

_SPLITS = ("train", "validation", "test")
_DIGEST_CHARS = 12


def describe_sweep(report: SweepReport, spec: SweepSpec, history: SweepHistory) -> str:
    """A table of facts, the sentences on the rows, and the sweep file."""
    manifest = _read_manifest(report)
    lines = "".join(note(one_line(line)) for line in history.data_lines)
    written = history.spec or spec.to_dict()
    text = yaml.safe_dump(dict(written), sort_keys=False, allow_unicode=True)
    return (
        facts(_list_facts(report, spec, history, manifest))
        + (lines or note("No facts about the rows were recorded."))
        + folded("The sweep file, with all defaults", preformatted(text))
    )


def list_bases(spec: SweepSpec, history: SweepHistory) -> list[str]:
    """The bases of the trials as they were written; those of the sweep before the first trial."""
    used = [str(one.spec["base"]["model"]) for one in history.trials.values()]
    return list(dict.fromkeys(used or [one.model for one in spec.bases]))


def _list_facts(
    report: SweepReport, spec: SweepSpec, history: SweepHistory, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    models, pins = list_bases(spec, history), history.pins
    yield (
        "base" if len(models) == 1 else "bases",
        ", ".join(one_line(model) + _pinned(pins, model) for model in models),
    )
    base = manifest.get("base") or {}
    if base.get("digest"):
        yield "digest of the base", _short(base["digest"])
    digests = manifest.get("data") or {}
    of_base: Mapping[str, Any] = next(iter(history.data_facts.values()), {})
    counted = of_base.get("rows") or {}
    sources: Mapping[str, Any] = (history.spec or {}).get("data") or {}
    for split in _SPLITS:
        source = sources.get(split)
        rows = counted.get(split) or {}
        parts = (
            one_line(str(source)) + _pinned(pins, str(source)) if isinstance(source, str) else "",
            f"{rows['rows']:,} rows" if "rows" in rows else "",
            _short(digests[split]) if digests.get(split) else "",
        )
        yield f"{'training' if split == 'train' else split} rows", ", ".join(filter(None, parts))
    if history.meter.begins:
        begun = datetime.fromtimestamp(history.meter.begins[0], UTC)
        yield "started", begun.strftime("%Y-%m-%d %H:%M UTC")
        yield "duration", format_duration(report.spent.get("wall_clock_s", 0.0))
    yield "searched", ", ".join(spec.search_space.knobs)
    goals = (f"{name} ({mode})" for name, mode in spec.objective.goals.items())
    yield "objective", "; ".join([*goals, *map(str, spec.objective.constraints)])
    yield "method", f"{spec.search.algorithm} with {spec.schedule.algorithm}, {spec.horizon} steps"
    versions = {"lorchestra": importlib.metadata.version("lorchestra"),
                **(manifest.get("packages") or {})}  # fmt: skip
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    yield "sweep", f"{report.sweep_id}, seed {spec.seed}, digest {_short(str(history.digest))}"


def _read_manifest(report: SweepReport) -> Mapping[str, Any]:
    """The manifest of the best adapter; empty if it is not in this folder."""
    best = report.best
    if best is None or best.bundle is None:
        return {}
    try:
        found = json.loads((report.storage / best.bundle / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}  # in a bucket, pruned or damaged: the page does without
    return found if isinstance(found, dict) else {}


def _pinned(pins: Mapping[str, str], source: str) -> str:
    commit = next((one for name, one in pins.items() if source in name), "")
    return f" at {commit[:_DIGEST_CHARS]}" if commit else ""


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGEST_CHARS]
