"""The search: what to try, in which order, on which resources. Read `run_sweep` first.

The names in `__all__` are the public surface: a sweep, its sections, its report and its errors.
All other names may move between modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.errors import (
    SweepError,
    SweepFailedError,
    SweepSpecError,
    SweepStorageError,
)

if TYPE_CHECKING:
    from orchestrator.opened import OpenedSweep, open_sweep
    from orchestrator.report.report import BestAdapter, SweepReport
    from orchestrator.run import run_sweep
    from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec
    from orchestrator.spec.hosts_section import HostsSpec
    from orchestrator.spec.sections import (
        BudgetSpec,
        ExitSpec,
        ObjectiveSpec,
        ScheduleSpec,
        SearchSpec,
    )
    from orchestrator.spec.sweep import SweepSpec

__all__ = [
    "BestAdapter",
    "BudgetSpec",
    "ExitSpec",
    "FinalsSpec",
    "HostsSpec",
    "ObjectiveSpec",
    "OpenedSweep",
    "RegisterSpec",
    "ScheduleSpec",
    "SearchSpec",
    "SweepError",
    "SweepFailedError",
    "SweepReport",
    "SweepSpec",
    "SweepSpecError",
    "SweepStorageError",
    "open_sweep",
    "run_sweep",
]

_HOMES = {
    "BestAdapter": "orchestrator.report.report",
    "BudgetSpec": "orchestrator.spec.sections",
    "ExitSpec": "orchestrator.spec.sections",
    "FinalsSpec": "orchestrator.spec.finals_sections",
    "HostsSpec": "orchestrator.spec.hosts_section",
    "ObjectiveSpec": "orchestrator.spec.sections",
    "OpenedSweep": "orchestrator.opened",
    "RegisterSpec": "orchestrator.spec.finals_sections",
    "ScheduleSpec": "orchestrator.spec.sections",
    "SearchSpec": "orchestrator.spec.sections",
    "SweepReport": "orchestrator.report.report",
    "SweepSpec": "orchestrator.spec.sweep",
    "open_sweep": "orchestrator.opened",
    "run_sweep": "orchestrator.run",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Ray, MLflow and Optuna take seconds to import; proxies and `lorchestra --help` need none.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
