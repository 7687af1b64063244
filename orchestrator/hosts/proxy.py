"""What Ray Tune sees of a trial: a small process that seats it, spends its credit, relays metrics.

It imports no torch. Tune reuses the process for the next trial.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle

from orchestrator.errors import SweepError
from orchestrator.hosts.broker import MAX_WAIT_S, broker_name
from orchestrator.hosts.members import SeatPhase, SeatStatus, group_key
from orchestrator.journal.paths import bundle_folder, state_folder
from orchestrator.outcome import Outcome
from trainables.hosts.orders import SeatReport, SeatRequest, fault_metrics
from trainables.hosts.progress import copy_progress
from trainables.hosts.storage import join_location
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)

POINTER_FILE = "trial.json"


class TrialProxy(tune.Trainable):  # type: ignore[misc]
    """A trial as Tune's unit.

    Its config holds `trial` (number), `spec` (`TrialSpec.to_dict()`) and `storage` (the sweep's
    location); one that goes on from another's checkpoint has that trial's number in
    `parent`. Other keys, such as `knobs`, are the searcher's. Results carry `trial`, `step` and
    the metrics of that step; the last one also `outcome` and `reason`.
    """

    _trial: int
    _step: int
    _every: int
    _horizon: int
    _group: str
    _attempt: str
    _request: SeatRequest
    _broker: ActorHandle

    def setup(self, config: dict[str, Any]) -> None:
        """Stand in line for a seat."""
        self._enter(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the last trial's seat, as Tune tells a stopped trial nothing; then join anew."""
        self._leave()
        self._enter(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation."""
        until = min(self._step + self._every, self._horizon)
        status = self._advance(until)
        report = status.report
        if report is not None and report.fault is not None:
            self._leave()
            return self._result(report, Outcome(report.fault), report.reason)
        if status.phase is SeatPhase.CLOSED:
            return self._result(report, Outcome.CANCELLED, "the sweep ended")
        if report is None or report.step < until:
            # Its host may have gone on meanwhile: the bundle's step is the one to tell.
            report = self._await_left().report
            return self._result(report, Outcome.STOPPED, "stopped from outside")
        self._step = report.step
        if self._step < self._horizon:
            return self._result(report)
        return self._finish(report)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Point to the state: the host keeps it in the sweep's storage."""
        pointer = {"trial": self._trial, "step": self._step, "state_dir": self._request.state_dir}
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on after the last step that Tune has heard of."""
        self._step = json.loads((Path(checkpoint_dir) / POINTER_FILE).read_text())["step"]

    def cleanup(self) -> None:
        """Leave the seat of the last trial."""
        try:
            self._leave()
        except ray.exceptions.RayError as error:
            logger.debug("trial %d outlived its broker: %s", self._trial, error)

    # --------------------------------------------------------------------------------- broker

    def _enter(self, config: dict[str, Any]) -> None:
        spec = TrialSpec.from_dict(config["spec"])
        storage = config["storage"]
        self._trial = config["trial"]
        self._every, self._horizon = spec.eval.every, spec.optim.steps
        self._group = group_key(spec)
        self._request = SeatRequest(
            spec=config["spec"],
            state_dir=join_location(storage, state_folder(config["trial"])),
            bundle_dir=join_location(storage, bundle_folder(config["trial"])),
        )
        self._step = self._origin(storage, config.get("parent"))
        self._broker = ray.get_actor(broker_name(storage))
        self._join()

    def _origin(self, storage: str, parent: Mapping[str, int] | None) -> int:
        """The step this trial starts from: 0, or the step of the state copied from the parent.

        A parent that has no state, or is through by now, leaves nothing to go on from.
        """
        if parent is None:
            return 0
        source = join_location(storage, state_folder(parent["trial"]))
        step = copy_progress(source, self._request.state_dir, below=self._horizon)
        logger.info("trial %d: from step %s of trial %d", self._trial, step, parent["trial"])
        return step or 0

    def _join(self) -> None:
        self._attempt = uuid.uuid4().hex[:12]
        ray.get(self._broker.join.remote(self._trial, self._attempt, self._group, self._request))

    def _advance(self, until: int) -> SeatStatus:
        """Wait for the report of step `until`, in line again if the lease was lost meanwhile."""
        while True:
            status: SeatStatus = ray.get(
                self._broker.advance.remote(self._trial, self._attempt, until, MAX_WAIT_S)
            )
            if status.phase is SeatPhase.SUPERSEDED:
                raise SweepError(
                    f"trial {self._trial}: another process trains it by now; this one gives up."
                )
            if status.phase is SeatPhase.LOST:
                self._join()
            elif status.answers(until):
                return status

    def _leave(self) -> None:
        ray.get(self._broker.leave.remote(self._trial, self._attempt, keep=True))

    def _await_left(self) -> SeatStatus:
        """Leave, and wait until the bundle is written."""
        while True:
            status: SeatStatus = ray.get(
                self._broker.leave.remote(self._trial, self._attempt, True, MAX_WAIT_S)
            )
            if status.phase is not SeatPhase.LEAVING:
                return status

    def _finish(self, report: SeatReport) -> dict[str, Any]:
        """Leave at the horizon, with the bundle written before Tune hears of the end."""
        status = self._await_left()
        if status.reason:
            return self._result(report, Outcome.FAILED, f"no bundle: {status.reason}")
        return self._result(report, Outcome.COMPLETED, f"trained {report.step} steps")

    def _result(
        self, report: SeatReport | None, outcome: Outcome | None = None, reason: str = ""
    ) -> dict[str, Any]:
        # Without a report there is nothing to tell: step 0 is no report.
        metrics = fault_metrics({"step": 0}) if report is None else report.metrics
        result: dict[str, Any] = {**metrics, "trial": self._trial, "done": outcome is not None}
        if outcome is not None:
            trace = "" if report is None else report.trace
            result |= {"outcome": outcome.value, "reason": reason, "trace": trace}
        return result


class SeatReleaser(tune.Callback):  # type: ignore[misc]
    """Frees the seat of a trial as soon as Tune stops it, for the next in line.

    Args:
        broker: The actor of `orchestrator.hosts.broker`.
    """

    def __init__(self, broker: ActorHandle) -> None:
        self._broker = broker

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Leave with the bundle of the last report; nothing where the trial has left itself."""
        self._broker.leave.remote(trial.config["trial"], None, keep=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Leave without a bundle."""
        self._broker.leave.remote(trial.config["trial"], None, keep=False)
