"""Supervises a running sweep: takes the user's requests, records usage, frees the disk."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray import tune
from ray.actor import ActorHandle

from orchestrator.errors import SweepStorageError
from orchestrator.interrupts import BackgroundThread, raise_swallowed
from orchestrator.journal.events import UsageMeasured
from orchestrator.journal.meter import Usage
from orchestrator.journal.paths import REQUESTS_FOLDER
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import MountedRequests, UserRequests, take_requests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import TrialOutcome, first_end
from orchestrator.search.budget import Budget
from orchestrator.search.pbt import Heir
from orchestrator.search.schedule import EarlyStopping

logger = logging.getLogger(__name__)

POLL_S, REMOTE_POLL_S = 0.5, 5.0
"""Seconds between two checks for requests: in a folder, in a bucket."""

USAGE_EVERY_S = 30.0
"""Seconds between two records of usage, and between two removals of checkpoints."""

LOOK_EVERY_S = 0.25
"""Seconds between two checks of the budget; Ray Tune asks many times a second."""


class Supervisor:
    """A thread that runs while the context is open.

    Args:
        record: Record that gets the usage.
        storage: Storage with the user's requests.
        requests: Collection that gets the requests.
        broker: Actor that releases a trial when the user stops the trial.
        usage: Returns the usage of this session's hosts so far.
        free_disk: Removes unneeded checkpoints; called as often as usage is recorded.
    """

    def __init__(
        self,
        record: SweepRecord,
        storage: SweepStorage,
        requests: UserRequests,
        broker: ActorHandle,
        usage: Callable[[], Usage],
        free_disk: Callable[[], object] = lambda: None,
    ) -> None:
        self._free = free_disk
        self._record, self._storage, self._requests = record, storage, requests
        self._broker, self._usage = broker, usage
        self._mounted = MountedRequests()
        self._closing = threading.Event()
        self._thread = BackgroundThread(self._run, "supervisor")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._thread.await_end(5.0)
        self.write_usage()
        self._free_disk()

    def write_usage(self) -> None:
        """Record the usage of the hosts so far."""
        usage = self._usage()
        self._record.add(UsageMeasured(cpu_s=round(usage.cpu_s, 3), gpu_s=round(usage.gpu_s, 3)))

    def _run(self) -> None:
        written = time.monotonic()
        pause_s = REMOTE_POLL_S if self._storage.is_remote else POLL_S
        while not self._closing.wait(pause_s):
            self._hear()
            if time.monotonic() - written >= USAGE_EVERY_S:
                written = time.monotonic()
                try:
                    self.write_usage()
                except SweepStorageError as error:  # usage is a total: the next record makes up
                    logger.warning("usage was not recorded: %s", error)
                self._free_disk()

    def _free_disk(self) -> None:
        try:
            self._free()
        except SweepStorageError as error:
            logger.warning("checkpoints were not removed: %s", error)

    def _hear(self) -> None:
        try:
            self._storage.collect(REQUESTS_FOLDER)
            requests = [*take_requests(self._storage.folder), *self._mounted.read_new()]
        except (SweepStorageError, OSError) as error:
            logger.warning("requests cannot be read: %s", error)
            return
        for request in requests:
            self._requests.add(request)
            if request.trial is not None:
                try:  # at once: the trial's next report may be far away
                    ray.get(self._broker.leave.remote(request.trial, None, keep=True))
                except ray.exceptions.RayError as error:
                    logger.warning("trial %d was not told to stop: %s", request.trial, error)


@dataclass(frozen=True)
class SteeringWithRequests:
    """The scheduler as a searcher sees it; a request of the user overrides the scheduler.

    The searcher therefore gets the same end of a trial as the log.
    """

    scheduler: EarlyStopping
    requests: UserRequests

    def next_heir(self) -> Heir | None:
        """See `EarlyStopping.next_heir`."""
        return self.scheduler.next_heir()

    def may_start_fresh(self, fresh_started: int) -> bool:
        """See `EarlyStopping.may_start_fresh`."""
        return self.scheduler.may_start_fresh(fresh_started)

    def end_of(self, trial: int) -> TrialOutcome | None:
        """End of a stopped trial; `None` if neither the user nor the scheduler stopped it."""
        return first_end(self.requests.end_of(trial), self.scheduler.end_of(trial))


class SweepStopper(tune.Stopper):  # type: ignore[misc]
    """Tells Ray Tune when the user or the budget ends one trial or all trials.

    Attributes:
        reason: Why the budget ended all trials; empty before.
    """

    def __init__(
        self,
        requests: UserRequests,
        budget: Budget,
        share: float,
        is_broken: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a stopper that ends all trials when a share of the budget is spent.

        It also ends them when the hosts cannot go on, which `is_broken` tells.
        """
        self._is_broken = is_broken
        self._requests, self._budget, self._share = requests, budget, share
        self._clock, self._looked_at = clock, -math.inf
        self.reason = ""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its stoppers; a copy stops no trial.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial ends."""
        return "trial" in result and self._requests.is_stopped(result["trial"])

    def stop_all(self) -> bool:
        """Whether all trials end."""
        raise_swallowed()
        if self._is_broken():
            return True
        now = self._clock()
        if not self._requests.is_cancelled and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self.reason = self._budget.exhausted(self._share)
        return self._requests.is_cancelled or bool(self.reason)
