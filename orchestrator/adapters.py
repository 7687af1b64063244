"""How versions of adapters look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from registry import AdapterVersion

_SHOWN = ("test_loss", "test_accuracy", "eval_loss", "eval_accuracy")


def render_versions(versions: Sequence[AdapterVersion]) -> Table | str:
    """One line per version."""
    if not versions:
        return "no adapter is registered yet; `lorchestra run SWEEP.yaml` registers its best"
    metrics = [name for name in _SHOWN if any(name in v.metrics for v in versions)]
    table = Table("adapter", "aliases", *metrics, "quantization", "rank", "registered", box=None)
    for version in versions:
        table.add_row(
            str(version.ref),
            ", ".join(version.aliases),
            *(f"{version.metrics[m]:.4f}" if m in version.metrics else "" for m in metrics),
            version.tags.get("quantization", ""),
            version.tags.get("lora.rank", ""),
            _when(version),
        )
    return table


def render_version(version: AdapterVersion) -> Group:
    """Everything that is recorded of one version."""
    table = Table(box=None, show_header=False)
    table.add_row("adapter", str(version.ref))
    table.add_row("aliases", ", ".join(version.aliases) or "none")
    table.add_row("registered", _when(version))
    table.add_row("run", version.run_id or "none")
    for name, value in sorted(version.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    metrics = {f"metric.{name}" for name in version.metrics} | set(version.metrics)
    for name, text in sorted(version.tags.items()):
        if name not in metrics:
            table.add_row(name, text, style=None)
    return Group(table)


def _when(version: AdapterVersion) -> str:
    at = version.created_at.astimezone()
    return at.strftime("%Y-%m-%d %H:%M")
