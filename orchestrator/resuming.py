"""Progress of a sweep, and the work that continues when the sweep is run again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.adapters.registering import registrants
from orchestrator.finals.forms import are_forms_evaluated
from orchestrator.finals.held_out import are_finalists_evaluated
from orchestrator.journal.events import (
    DataInspected,
    InputsPinned,
    StageEnded,
    StageName,
    SweepResumed,
    SweepStarted,
    TrialResumed,
)
from orchestrator.journal.history import TrialRecord
from orchestrator.journal.paths import REQUESTS_FOLDER, bundle_folder
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import STOPPED_BY_USER, take_requests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import TRAITS, Outcome
from orchestrator.preflight.continuing import require_same_sweep
from orchestrator.preflight.data_report import DataReport
from orchestrator.spec.complaint import complaint
from orchestrator.spec.sweep import SweepSpec

_STAGES: dict[StageName, tuple[str, ...]] = {
    "search": ("budget",),
    "repeats": ("budget", "finals", "register"),
}
"""The stages of training, each with the sections of a sweep file that limit the stage."""


@dataclass(frozen=True, kw_only=True)
class SweepProgress:
    """Compares a sweep's history with the present spec, whose budget may have grown.

    Attributes:
        spec: The present spec.
        storage: Storage of the sweep.
        record: Log and history of the sweep.
    """

    spec: SweepSpec
    storage: SweepStorage
    record: SweepRecord

    def start_or_resume(self) -> None:
        """Record the start of a new sweep, or resume the same sweep in the folder.

        Raises:
            SweepStorageError: The folder holds another sweep.
            SweepSpecError: The spec asks for finalists whose states were pruned.
        """
        history, spec = self.record.history, self.spec
        if history.sweep_id is None:
            self.record.add(
                SweepStarted(sweep_id=uuid.uuid4().hex, spec=spec.to_dict(), digest=spec.digest)
            )
        else:
            require_same_sweep(spec, history, self.storage.location)
            self._require_kept()
            if not self.is_over() or not self.is_registered():
                self._resume()

    def keep_inputs(self, pins: Mapping[str, str], data: DataReport) -> None:
        """Record pinned commits and facts about the rows, if changed since the last start."""
        history = self.record.history
        if pins and history.pins != pins:
            self.record.add(InputsPinned(pins=pins))
        if history.data_facts != data.facts or history.data_lines != data.lines:
            self.record.add(DataInspected(lines=data.lines, facts=data.facts))

    def has_ended(self, stage: StageName) -> bool:
        """Whether a stage has ended under the present settings."""
        ended = self.record.history.stages.get(stage)
        return ended is not None and ended.under == self._settings_of(stage)

    def end(self, stage: StageName, reason: str) -> None:
        """Record the end of a stage; the reason is empty when nothing was left to do."""
        under = self._settings_of(stage)
        self.record.add(StageEnded(stage=stage, reason=reason, under=under))

    def is_over(self) -> bool:
        """Whether nothing is left to train or evaluate."""
        return (
            all(self.has_ended(stage) for stage in _STAGES)
            and are_finalists_evaluated(self.spec, self.record, self.storage)
            and are_forms_evaluated(self.spec, self.record.history)
        )

    def is_registered(self) -> bool:
        """Whether the best adapters are registered, and the first of them was put to the gate."""
        register, history = self.spec.register, self.record.history
        chosen = [standing.adapter for standing in registrants(self.spec, history)]
        if register is None or not chosen:
            return True
        gated = {promotion.ref for promotion in history.promotions}
        return all((trial.ref or "").startswith(f"{register.name}/") for trial in chosen) and (
            not register.promote or chosen[0].ref in gated
        )

    def _require_kept(self) -> None:
        """Refuse a larger `finals.top` if a new finalist's state was pruned."""
        ended, top = self.record.history.stages.get("repeats"), self.spec.finals.top
        if ended is None or top <= ended.under["finals"]["top"]:
            return  # a larger budget may find other finalists
        ranking = self.record.history.ranking(self.spec.objective)[:top]
        pruned = [trial for trial in ranking if "state" in trial.pruned]
        if pruned:
            raise complaint(
                "finals.top",
                top,
                f"up to {ranking.index(pruned[0])}, because the state of trial "
                f"{pruned[0].number}, which its evaluation needs, was pruned",
                "Lower finals.top, or run the sweep again in another storage.",
            )

    def _resume(self) -> None:
        is_failed = self.record.history.status == Outcome.FAILED
        stages = [stage for stage in _STAGES if not self.has_ended(stage)]
        self.record.add(SweepResumed())
        # Carry out stops requested while no driver ran; a resume makes cancel requests void.
        self.storage.collect(REQUESTS_FOLDER)
        for request in take_requests(self.storage.folder):
            record = self.record.history.trials.get(-1 if request.trial is None else request.trial)
            if record is not None:
                bundle = bundle_folder(record.number) if record.reports else None
                self.record.end_trial(record.number, STOPPED_BY_USER, bundle, by="user")
        for trial in self.record.history.ended():
            stage: StageName = "search" if trial.repeat_of is None else "repeats"
            if stage in stages and continues_on_resume(trial, is_failed):
                self.storage.remove_bundle(trial.number)  # the trial will train further
                self.record.add(TrialResumed(trial=trial.number, step=trial.step))

    def _settings_of(self, stage: StageName) -> dict[str, Any]:
        """The settings that limit a stage."""
        values = self.spec.to_dict()
        return {name: values[name] for name in _STAGES[stage]}


def continues_on_resume(trial: TrialRecord, is_failed: bool) -> bool:
    """Whether an ended trial continues when its sweep is resumed.

    Trials that ended because the budget was spent or the sweep was cancelled continue. If the
    whole sweep failed, trials that failed before their first evaluation also continue: the user
    may have corrected the cause.
    """
    if trial.outcome is Outcome.CANCELLED:
        return trial.reason != STOPPED_BY_USER.reason
    may_be_corrected = trial.outcome is not None and TRAITS[trial.outcome].may_be_corrected
    return is_failed and may_be_corrected and not trial.measured
