"""All checks of a sweep before Ray: base, rows, storage, MLflow. `run` and `check` share them.

Checks that need no heavy import come first, so that most mistakes are told within two seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.capacity.outlook import Outlook
from orchestrator.errors import SweepSpecError
from orchestrator.journal.history import SweepHistory
from orchestrator.journal.paths import DATA_FOLDER
from orchestrator.journal.pins import settle_pins
from orchestrator.journal.sweep_storage import SweepStorage, read_history, require_cache
from orchestrator.outcome import Outcome
from orchestrator.preflight.continuing import require_same_sweep
from orchestrator.preflight.data_report import (
    DataReport,
    glance_at_bases,
    inspect_inputs,
    read_local_rows,
    with_fetched_configs,
)
from orchestrator.preflight.looking_ahead import outlook_on_this_machine, require_fitting
from orchestrator.quiet import library_chatter_held
from orchestrator.spec.inputs import SPLITS, load_functions
from orchestrator.spec.sweep import SweepSpec
from trainables.base.presence import hub_fault, is_hub_model, stay_offline
from trainables.errors import SpecError
from trainables.evaluation.answers import load_metrics
from trainables.files.sources import is_local
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A checked sweep, ready to run.

    Attributes:
        spec: The sweep, with rows in files and commits in place of branches.
        storage: Its storage.
        tracking_uri: Address of MLflow.
        artifacts: Address for MLflow's artifacts; `None` for a server's choice.
        known: Copy of the history in the storage.
        is_cluster_checked: Whether Ray was checked.
        pins: Commits of the hub's repositories.
        data: The inspection of bases and rows.
        notes: Sentences on the machine, for the user.
        said: Output of libraries meanwhile.
        outlook: What the sweep needs of a device; `None` for a completed sweep.
    """

    spec: SweepSpec
    storage: SweepStorage
    tracking_uri: str
    artifacts: str | None
    known: SweepHistory
    is_cluster_checked: bool
    pins: Mapping[str, str]
    data: DataReport
    notes: tuple[str, ...]
    said: str
    outlook: Outlook | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """Sentences for the user at the start: machine, bases, rows, memory, hours."""
        ahead = [] if self.outlook is None else self.outlook.short_lines()
        return (*self.notes, *self.data.lines, *ahead)

    def refuse(self, trial: TrialSpec, history: SweepHistory | None = None) -> str:
        """Reason against training a configuration; empty if it fits, or nothing is known.

        Args:
            trial: The configuration.
            history: History of the sweep, with what its hosts have measured.
        """
        measured = () if history is None else history.hosts_measured
        return "" if self.outlook is None else self.outlook.refuse(trial, measured)


def prepare_sweep(
    spec: SweepSpec,
    storage: str | Path | None = None,
    *,
    check_cluster: Callable[[], bool] = lambda: False,
    may_stay_offline: bool = False,
) -> PreparedSweep:
    """Check everything that can be known before Ray starts.

    Args:
        spec: The sweep.
        storage: Its folder or bucket prefix; `runs/<name>` when not given.
        check_cluster: Checks Ray for a sweep that has something left to train, and returns
            whether it did.
        may_stay_offline: Whether this process may stop asking a hub that cannot be reached, and
            use the hub's cache alone until it ends.

    Raises:
        SweepSpecError: A value in the spec cannot work.
        DataError: A row cannot be used.
        BaseModelError: A base cannot be had or trained on.
        SweepStorageError: The storage holds another sweep, or cannot be used.
        ClusterError: Ray cannot be used.
        TrackingError: MLflow refuses this user, or its database cannot be used.
    """
    kept = SweepStorage(storage or RUNS / spec.name)
    _check_metrics(spec)
    load_functions(spec.eval.metric, spec.exits.stop, spec.objective)
    require_cache()
    known = read_history(kept.location)
    with library_chatter_held() as said:
        spec = spec.with_saved_rows(kept.folder / DATA_FOLDER)
        rows = read_local_rows(spec)
        glance_at_bases(spec)
        note = _settle_hub(spec) if may_stay_offline else ""
    tracking_uri, artifacts = _require_mlflow(spec, kept)
    is_cluster_checked = known.status != Outcome.COMPLETED and check_cluster()
    with library_chatter_held() as more:
        spec, pins = settle_pins(spec, known.pins)
        spec = with_fetched_configs(spec)
        require_same_sweep(spec, known, kept.location)
        data = inspect_inputs(spec, rows)
        outlook = None
        if known.status != Outcome.COMPLETED:
            runs = RUNS if kept.is_remote else kept.folder.parent
            outlook = outlook_on_this_machine(spec, data, runs)
            require_fitting(outlook)
    return PreparedSweep(
        spec=spec,
        storage=kept,
        tracking_uri=tracking_uri,
        artifacts=artifacts,
        known=known,
        is_cluster_checked=is_cluster_checked,
        pins=pins,
        data=data,
        notes=(note,) if note else (),
        said=said.getvalue() + more.getvalue(),
        outlook=outlook,
    )


def _check_metrics(spec: SweepSpec) -> None:
    try:
        load_metrics(spec.finals.metrics)
    except SpecError as error:
        raise SweepSpecError(str(error).replace("evaluation.", "finals.")) from error


def _settle_hub(spec: SweepSpec) -> str:
    """Use cached files alone, in this process, if the hub of bases or rows cannot be reached.

    Returns:
        A sentence for the user; empty if the hub is not needed or answers.
    """
    sources = [getattr(spec.data, split) for split in SPLITS]
    is_needed = any(is_hub_model(base.model) for base in spec.bases) or any(
        isinstance(source, str) and not is_local(source) for source in sources
    )
    if not is_needed:
        return ""
    fault = hub_fault()
    if not fault:
        return ""
    stay_offline()
    return f"The hub cannot be reached ({fault}): files in its cache are used."


def _require_mlflow(spec: SweepSpec, kept: SweepStorage) -> tuple[str, str | None]:
    """Addresses of MLflow and of its artifacts, checked for writing.

    Raises:
        TrackingError: MLflow cannot be used.
    """
    # Imported here: importing MLflow takes seconds.
    from registry.tracking.access import check_access
    from registry.tracking.connection import tracking_uri_for
    from registry.tracking.experiments import SWEEPS_EXPERIMENT

    tracking_uri, artifacts = tracking_uri_for(RUNS if kept.is_remote else kept.folder.parent)
    check_access(tracking_uri, SWEEPS_EXPERIMENT, spec.register.name if spec.register else None)
    return tracking_uri, artifacts
