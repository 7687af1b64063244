"""What to try, in which order, on which resources; `run_sweep` is the page to read first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import (
    SweepError,
    SweepFailedError,
    SweepSpecError,
    SweepStorageError,
)

if TYPE_CHECKING:
    from orchestrator.report.report import SweepReport
    from orchestrator.run import run_sweep
    from orchestrator.spec.sweep import SweepSpec

__all__ = [
    "SweepError",
    "SweepFailedError",
    "SweepReport",
    "SweepSpec",
    "SweepSpecError",
    "SweepStorageError",
    "run_sweep",
]

_HOMES = {
    "SweepReport": "orchestrator.report.report",
    "SweepSpec": "orchestrator.spec.sweep",
    "run_sweep": "orchestrator.run",
}


def __getattr__(name: str) -> Any:
    # Ray, MLflow and Optuna take seconds to import; a proxy or a `lorchestra --help` needs none.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
