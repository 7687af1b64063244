"""How versions of adapters look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from registry import AdapterVersion


def render_versions(versions: Sequence[AdapterVersion]) -> Table | str:
    """One line per version, with its measures on test rows where it has them."""
    if not versions:
        return "no adapter is registered yet; `lorchestra run SWEEP.yaml` registers its best"
    table = Table(box=None, pad_edge=False)
    for heading in ("adapter", "alias", "loss", "accuracy", "split", "form", "rank", "registered"):
        table.add_column(heading, overflow="fold")
    for version in versions:
        split = "test" if "test_loss" in version.metrics else "eval"
        table.add_row(
            str(version.ref),
            ", ".join(version.aliases),
            *(_number(version, f"{split}_{measure}") for measure in ("loss", "accuracy")),
            split,
            version.tags.get("quantization", ""),
            version.tags.get("lora.rank", ""),
            _when(version),
        )
    return table


def render_version(version: AdapterVersion) -> Group:
    """Everything that is recorded of one version."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("adapter", str(version.ref))
    table.add_row("aliases", ", ".join(version.aliases) or "none")
    table.add_row("registered", _when(version))
    table.add_row("run", version.run_id or "none")
    for name, value in sorted(version.metrics.items()):
        table.add_row(name, f"{value:.6g}")
    metrics = {f"metric.{name}" for name in version.metrics} | set(version.metrics)
    for name, text in sorted(version.tags.items()):
        if name not in metrics:
            table.add_row(name, Text(text))  # brackets in it are no markup
    return Group(table)


def _number(version: AdapterVersion, metric: str) -> str:
    return f"{version.metrics[metric]:.4f}" if metric in version.metrics else ""


def _when(version: AdapterVersion) -> str:
    at = version.created_at.astimezone()
    return at.strftime("%Y-%m-%d %H:%M")
