"""Ray Tune's side of a trial: a small process that takes a seat, grants credit and relays metrics.

The process imports no torch. Tune reuses it for the next trial.
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
    location). For a trial that continues from the checkpoint of another, `parent` has the number
    of the other trial. Other keys, such as `knobs`, are for the searcher only. Results hold
    `trial`, `step` and the metrics of the step; the last result also `outcome`, `reason` and
    `trace`.
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
        """Join the line for a seat."""
        self._enter(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leave the last trial's seat, as Tune does not notify a stopped trial; then join."""
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
            # The host may have trained on meanwhile: report the step of the bundle.
            report = self._await_left().report
            return self._result(report, Outcome.STOPPED, "stopped from outside")
        self._step = report.step
        if self._step < self._horizon:
            return self._result(report)
        status = self._await_left()  # the bundle is written before Tune learns of the end
        if status.reason:
            return self._result(report, Outcome.FAILED, f"no bundle: {status.reason}")
        return self._result(report, Outcome.COMPLETED, f"trained {report.step} steps")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write a pointer to the state, which the host saves in the sweep's storage."""
        pointer = {"trial": self._trial, "step": self._step, "state_dir": self._request.state_dir}
        (Path(checkpoint_dir) / POINTER_FILE).write_text(json.dumps(pointer))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continue after the last step that Tune knows."""
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
        self._step = self._copy_state_of_parent(storage, config.get("parent"), spec)
        self._broker = ray.get_actor(broker_name(storage))
        self._join()

    def _copy_state_of_parent(
        self, storage: str, parent: Mapping[str, int] | None, spec: TrialSpec
    ) -> int:
        """Copy the parent's state, if there is one; returns the step to start from.

        A parent without a state below the horizon gives step 0.
        """
        if parent is None:
            return 0
        source = join_location(storage, state_folder(parent["trial"]))
        step = copy_progress(source, self._request.state_dir, spec)
        logger.info("trial %d: from step %s of trial %d", self._trial, step, parent["trial"])
        return step or 0

    def _join(self) -> None:
        self._attempt = uuid.uuid4().hex[:12]
        ray.get(self._broker.join.remote(self._trial, self._attempt, self._group, self._request))

    def _advance(self, until: int) -> SeatStatus:
        """Wait for the report of step `until`; join again if the lease is lost."""
        while True:
            status: SeatStatus = ray.get(
                self._broker.advance.remote(self._trial, self._attempt, until, MAX_WAIT_S)
            )
            if status.phase is SeatPhase.SUPERSEDED:
                raise SweepError(
                    f"trial {self._trial}: another process trains it now; this process gives up."
                )
            if status.phase is SeatPhase.LOST:
                self._join()
            elif status.answers(until):
                return status

    def _leave(self) -> None:
        ray.get(self._broker.leave.remote(self._trial, self._attempt, keep=True))

    def _await_left(self) -> SeatStatus:
        """Leave the seat and wait until the bundle is written."""
        while True:
            status: SeatStatus = ray.get(
                self._broker.leave.remote(self._trial, self._attempt, True, MAX_WAIT_S)
            )
            if status.phase is not SeatPhase.LEAVING:
                return status

    def _result(
        self, report: SeatReport | None, outcome: Outcome | None = None, reason: str = ""
    ) -> dict[str, Any]:
        # Without a report, all metrics are stand-ins: there is no report of step 0.
        metrics = fault_metrics({"step": 0}) if report is None else report.metrics
        result: dict[str, Any] = {**metrics, "trial": self._trial, "done": outcome is not None}
        if outcome is not None:
            trace = "" if report is None else report.trace
            result |= {"outcome": outcome.value, "reason": reason, "trace": trace}
        return result


class SeatReleaser(tune.Callback):  # type: ignore[misc]
    """Frees the seat of a trial for the next in line as soon as Tune stops the trial.

    Args:
        broker: The actor of `orchestrator.hosts.broker`.
    """

    def __init__(self, broker: ActorHandle) -> None:
        self._broker = broker

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Leave with the bundle of the last report; does nothing if the trial has left."""
        self._broker.leave.remote(trial.config["trial"], None, keep=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Leave without a bundle."""
        self._broker.leave.remote(trial.config["trial"], None, keep=False)
