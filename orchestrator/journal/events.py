"""Events of a sweep: one frozen dataclass for each kind of line in the log.

A new event is a dataclass here, a name in `EVENT_TYPES`, and a reader: usually a function in
`orchestrator.journal.history` that folds the event into the sweep's history.
`orchestrator.journal.codec` writes and reads the fields as they are declared here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.outcome import Outcome

Count = Annotated[int, Field(ge=0, le=10**12)]
"""Number of a trial or of a step."""

Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
"""Seconds, or seconds times devices."""

Folder = Literal["state", "bundle"]
"""Saved states of a trial, or the exported adapters of a trial, with those of earlier steps."""

StageName = Literal["search", "repeats"]
"""Stages that train: the search, and the finalists' runs with new seeds."""


@dataclass(frozen=True, kw_only=True)
class SweepStarted:
    """A new sweep begins.

    Attributes:
        sweep_id: Identifies the sweep in MLflow.
        spec: `SweepSpec.to_dict` of the sweep.
        digest: `SweepSpec.digest` of the sweep.
    """

    sweep_id: str
    spec: Mapping[str, Any]
    digest: str


@dataclass(frozen=True, kw_only=True)
class InputsPinned:
    """Branches and tags of the hub's repositories are settled as commits.

    Attributes:
        pins: Commits by repository, as `orchestrator.journal.pins` names it.
    """

    pins: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class DataInspected:
    """The bases and rows were inspected before the training.

    Attributes:
        lines: Sentences for the user.
        facts: The same as plain values, by base.
    """

    lines: Sequence[str]
    facts: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepResumed:
    """A driver resumes the sweep."""


@dataclass(frozen=True, kw_only=True)
class SessionLost:
    """The driver was killed after the previous event."""


@dataclass(frozen=True, kw_only=True)
class SweepEnded:
    """The sweep ends.

    Attributes:
        status: Completed, failed or cancelled.
        reason: One sentence.
    """

    status: Outcome
    reason: str


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage of training has no work left under the present settings.

    Attributes:
        stage: The stage.
        reason: What ended the stage early; empty when nothing was left to train.
        under: The sections of the sweep file that limit the stage.
    """

    stage: StageName
    reason: str
    under: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PhaseEnded:
    """The driver ends a phase of its work.

    Attributes:
        name: Such as `searching`.
        seconds: Wall-clock time that the phase took.
    """

    name: str
    seconds: Amount


@dataclass(frozen=True, kw_only=True)
class UsageMeasured:
    """Total use of devices by the hosts of this session so far.

    Attributes:
        cpu_s: Seconds times CPUs.
        gpu_s: Seconds times GPUs.
    """

    cpu_s: Amount
    gpu_s: Amount


@dataclass(frozen=True, kw_only=True)
class UsageAdded:
    """Use of devices by evaluation workers since the last such event.

    Attributes:
        cpu_s: Seconds times CPUs.
        gpu_s: Seconds times GPUs.
    """

    cpu_s: Amount
    gpu_s: Amount


@dataclass(frozen=True, kw_only=True)
class HostMeasured:
    """A host measured the first passes of a pack, with the longest rows.

    Attributes:
        host: Name of the host in its session.
        group: Base and form, as `members.group_key`.
        seats: Number of seats in the pass.
        train_tokens: Tokens of its longest row.
        forecast: Bytes before the measurement: `base`, `adapters`, `optimizer`, and `passing` for
            what a forward and backward pass takes besides.
        measured: Bytes of the same parts.
        capacity: Bytes of the device.
        factor: What later forecasts of a pass are multiplied by.
    """

    host: str
    group: str
    seats: Count
    train_tokens: Count
    forecast: Mapping[str, Amount]
    measured: Mapping[str, Amount]
    capacity: Amount
    factor: Amount


@dataclass(frozen=True, kw_only=True)
class SeatsDecided:
    """A host decided on its number of seats.

    Attributes:
        host: Name of the host in its session.
        group: Base and form, as `members.group_key`.
        seats: Trials that the host trains at once.
        reason: What limits them: `memory`, `knee` (one more raises tokens per second by less than
            a tenth) or `no limit` (no memory is known and no speed could be measured).
        by_memory: Seats that the memory is forecast to hold; `None` if it is not known.
        by_knee: Seats up to the last that pays; `None` if it was not measured.
        speeds: Tokens per second of 1, 2, … seats, as measured.
    """

    host: str
    group: str
    seats: Count
    reason: str
    by_memory: Count | None = None
    by_knee: Count | None = None
    speeds: Sequence[float] = ()


@dataclass(frozen=True, kw_only=True)
class StartPointsChosen:
    """The search knows its first configurations.

    Attributes:
        points: Knobs of each configuration.
    """

    points: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TrialStarted:
    """Ray Tune starts a trial for the first time.

    Attributes:
        trial: The trial's number.
        knobs: Values that the searcher chose.
        spec: `TrialSpec.to_dict` of the trial.
        parent: For a trial that continues from a checkpoint: the `trial` and `step` of the
            checkpoint, and the stopped trial that the new trial `replaces`.
        repeat_of: The finalist that this trial repeats with another seed.
    """

    trial: Count
    knobs: Mapping[str, Any]
    spec: Mapping[str, Any]
    parent: Mapping[str, Count] | None = None
    repeat_of: Count | None = None


@dataclass(frozen=True, kw_only=True)
class TrialResumed:
    """A trial continues after a lost process, or after an end that was revoked.

    Attributes:
        trial: The trial's number.
        step: Last reported step.
    """

    trial: Count
    step: Count


@dataclass(frozen=True, kw_only=True)
class StateLost:
    """A trial's saved state was damaged: the trial continues from an older one.

    Attributes:
        trial: The trial's number.
        step: Step of the damaged state.
        back_to: Step of the older state; 0 without one.
    """

    trial: Count
    step: Count
    back_to: Count


@dataclass(frozen=True, kw_only=True)
class TrialReported:
    """A trial reports its metrics at a step.

    Attributes:
        trial: The trial's number.
        step: Optimizer steps so far.
        metrics: Values for the searcher and the scheduler.
        is_fault: The trial broke; the metrics are stand-ins for the searcher.
    """

    trial: Count
    step: Count
    metrics: Mapping[str, float]
    is_fault: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialEnded:
    """A trial ends.

    Attributes:
        trial: The trial's number.
        outcome: How the trial ended.
        reason: One sentence.
        step: Last reported step.
        bundle: Folder of the adapter in the sweep's storage; `None` without an adapter.
        by: `user` or `budget` for a cancelled trial.
    """

    trial: Count
    outcome: Outcome
    reason: str
    step: Count
    bundle: str | None
    by: str = ""


@dataclass(frozen=True, kw_only=True)
class BaseEvaluated:
    """The bare base was evaluated on the rows of a split.

    Attributes:
        base: `members.group_key` of the trials on the base.
        split: `validation` or `test`.
        metrics: Loss and accuracies of the split's rows, by name.
    """

    base: str
    split: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FinalistEvaluated:
    """A finalist was evaluated on the rows that decide the finals.

    Attributes:
        trial: The trial's number.
        metrics: Loss and accuracies of the split's rows, by name.
    """

    trial: Count
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FormEvaluated:
    """A finalist's adapter was evaluated in a serving form.

    Attributes:
        trial: The trial's number.
        form: The serving form.
        metrics: As `orchestrator.finals.form_scores` reads them; empty after an error.
        error: Why the adapter cannot be evaluated in this form; empty when it was.
        fingerprint: Digest of the evaluation's settings, metrics and rows; empty for a lost
            evaluation, which must be repeated.
    """

    trial: Count
    form: str
    metrics: Mapping[str, float]
    error: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class AdapterRegistered:
    """A trial's adapter was registered.

    Attributes:
        trial: The trial's number.
        ref: The version, as `name/number`.
        digest: Digest of the bundle.
    """

    trial: Count
    ref: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class PromotionDecided:
    """The promotion gate decided on the best version.

    Attributes:
        ref: The version, as `name/number`.
        promoted: Whether the version is champion now.
        reason: One sentence.
    """

    ref: str
    promoted: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoldersPruned:
    """Folders of trials were removed from the storage.

    Attributes:
        what: Which folder of each trial.
        trials: Numbers of the trials.
    """

    what: Folder
    trials: Sequence[Count]


@dataclass(frozen=True, kw_only=True)
class UnknownEvent:
    """An event of a newer version of lorchestra; readers ignore it.

    Attributes:
        kind: The event's name in the log.
    """

    kind: str


Event = (
    SweepStarted | InputsPinned | DataInspected | SweepResumed | SessionLost | SweepEnded
    | StageEnded | PhaseEnded | UsageMeasured | UsageAdded | HostMeasured | SeatsDecided
    | StartPointsChosen | TrialStarted | TrialResumed | StateLost | TrialReported | TrialEnded
    | BaseEvaluated | FinalistEvaluated | FormEvaluated | AdapterRegistered | PromotionDecided
    | FoldersPruned
)  # fmt: skip

EVENT_TYPES: Mapping[str, type[Event]] = {
    "sweep_started": SweepStarted,
    "pinned": InputsPinned,
    "data_inspected": DataInspected,
    "sweep_resumed": SweepResumed,
    "session_lost": SessionLost,
    "sweep_ended": SweepEnded,
    "stage_ended": StageEnded,
    "phase": PhaseEnded,
    "usage": UsageMeasured,
    "usage_added": UsageAdded,
    "host_measured": HostMeasured,
    "seats_decided": SeatsDecided,
    "start_points": StartPointsChosen,
    "trial_started": TrialStarted,
    "trial_resumed": TrialResumed,
    "state_lost": StateLost,
    "report": TrialReported,
    "trial_ended": TrialEnded,
    "base_evaluated": BaseEvaluated,
    "final_evaluated": FinalistEvaluated,
    "form_evaluated": FormEvaluated,
    "registered": AdapterRegistered,
    "promoted": PromotionDecided,
    "pruned": FoldersPruned,
}
"""Events by their names in the log."""

_NAMES = {kind: name for name, kind in EVENT_TYPES.items()}


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line of the log.

    Attributes:
        at: Seconds since the epoch.
        event: What happened.
    """

    at: float
    event: Event | UnknownEvent

    @property
    def kind(self) -> str:
        """Name of the event's kind in the log."""
        if isinstance(self.event, UnknownEvent):
            return self.event.kind
        return _NAMES[type(self.event)]
