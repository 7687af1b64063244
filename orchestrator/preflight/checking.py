"""`lorchestra check`: all checks of a sweep before Ray, and what the sweep will do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.journal.history import SweepHistory
from orchestrator.outcome import Outcome
from orchestrator.preflight.machine import Machine, look_at_machine
from orchestrator.preflight.places import require_usable
from orchestrator.preflight.plan import SweepPlan, plan_sweep
from orchestrator.preflight.prepared import PreparedSweep, prepare_sweep
from orchestrator.search.budget import require_measurable
from orchestrator.spec.sweep import SweepSpec


@dataclass(frozen=True, kw_only=True)
class CheckedSweep:
    """A sweep that can start, with its plan.

    Attributes:
        prepared: Findings of the checks.
        plan: What the sweep does from its start to its end.
        machine: This machine; `None` if Ray runs elsewhere.
        tracking: Address of MLflow, without secrets.
    """

    prepared: PreparedSweep
    plan: SweepPlan
    machine: Machine | None
    tracking: str

    @property
    def lines(self) -> tuple[str, ...]:
        """Sentences for the user, in the order of a sweep."""
        known, prepared = self.prepared.known, self.prepared
        where = "" if self.machine is None else f"Machine: {self.machine.describe()}."
        return tuple(
            line
            for line in (
                f"Sweep {prepared.spec.name} in {prepared.storage.location}: {_state(known)}.",
                *prepared.notes,
                *prepared.data.lines,
                *self.plan.lines,
                *([] if prepared.outlook is None else prepared.outlook.short_lines()),
                f"MLflow: {self.tracking}.",
                where,
            )
            if line
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        prepared = self.prepared
        return {
            "sweep": prepared.spec.name,
            "storage": prepared.storage.location,
            "state": _state(prepared.known),
            "trials_so_far": len(prepared.known.trials),
            "notes": [*prepared.notes, *prepared.data.lines],
            "data": prepared.data.facts,
            "plan": self.plan.to_dict(),
            "outlook": None if prepared.outlook is None else prepared.outlook.to_dict(),
            "mlflow": self.tracking,
            "machine": None if self.machine is None else self.machine.to_dict(),
        }


def check_sweep(spec: SweepSpec, storage: str | Path | None = None) -> CheckedSweep:
    """Check a sweep as `run` does before it starts Ray; nothing is started or recorded.

    Raises:
        SweepSpecError: A value in the spec cannot work.
        DataError: A row cannot be used.
        BaseModelError: A base cannot be had or trained on.
        SweepStorageError: The storage holds another sweep, is in use, or cannot be written.
        TrackingError: MLflow cannot be used.
    """
    is_elsewhere = os.environ.get("RAY_ADDRESS", "").strip() not in ("", "local")
    machine = None if is_elsewhere else look_at_machine()
    if machine is not None:
        require_measurable(spec.budget, len(machine.gpus))
    prepared = prepare_sweep(spec, storage, may_stay_offline=True)
    if not prepared.storage.is_remote:
        require_usable(prepared.storage.folder)
    from registry.tracking.connection import without_secrets

    return CheckedSweep(
        prepared=prepared,
        plan=plan_sweep(prepared.spec),
        machine=machine,
        tracking=without_secrets(prepared.tracking_uri),
    )


def _state(known: SweepHistory) -> str:
    """What `run` does with the storage."""
    if known.sweep_id is None:
        return "a new sweep"
    if known.status == Outcome.COMPLETED:
        return f"a completed sweep of {len(known.searched())} trials"
    return f"continues a sweep of {len(known.searched())} trials so far"
