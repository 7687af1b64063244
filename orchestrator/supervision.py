"""Beside a running sweep: hears the user's requests, records what hosts use, frees the disk."""

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
from orchestrator.journal.events import UsageMeasured
from orchestrator.journal.meter import Usage
from orchestrator.journal.paths import REQUESTS_FOLDER
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.requests import Wishes, take_requests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import TrialOutcome, first_end
from orchestrator.search.budget import Budget
from orchestrator.search.pbt import Heir
from orchestrator.search.schedule import EarlyStopping

logger = logging.getLogger(__name__)

POLL_S, REMOTE_POLL_S = 0.5, 5.0
"""Between two looks for requests, in a folder and in a bucket."""

USAGE_EVERY_S = 30.0
"""Between two records of usage, and between two removals of checkpoints."""

LOOK_EVERY_S = 0.25
"""Between two looks at the budget: Ray Tune asks many times a second."""


class Supervisor:
    """A thread from entering to leaving.

    Args:
        record: Where usage is written down.
        storage: Where requests are left.
        wishes: Where requests are put.
        broker: Told to let go of a trial that the user stops.
        usage: What hosts of this session have used so far.
        free_disk: Removes what the storage can do without; called as often as usage is recorded.
    """

    def __init__(
        self,
        record: SweepRecord,
        storage: SweepStorage,
        wishes: Wishes,
        broker: ActorHandle,
        usage: Callable[[], Usage],
        free_disk: Callable[[], object] = lambda: None,
    ) -> None:
        self._free = free_disk
        self._record, self._storage, self._wishes = record, storage, wishes
        self._broker, self._usage = broker, usage
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

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
        self._thread.join(timeout=5.0)
        self.write_usage()
        self._free_disk()

    def write_usage(self) -> None:
        """Put what hosts have used so far on record."""
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
                except SweepStorageError as error:  # the next one holds it, too
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
            requests = take_requests(self._storage.folder)
        except (SweepStorageError, OSError) as error:
            logger.warning("requests cannot be read: %s", error)
            return
        for request in requests:
            self._wishes.add(request)
            if request.trial is not None:
                self._release(request.trial)

    def _release(self, trial: int) -> None:
        """Tell the trial's proxy at once, before the next report."""
        try:
            ray.get(self._broker.leave.remote(trial, None, keep=True))
        except ray.exceptions.RayError as error:
            logger.warning("trial %d was not told to stop: %s", trial, error)


@dataclass(frozen=True)
class SteeringWithWishes:
    """What a searcher is told of the scheduler, with the user's word before the scheduler's.

    So a search learns of a trial that the user stopped what the log will say of it.
    """

    scheduler: EarlyStopping
    wishes: Wishes

    def next_heir(self) -> Heir | None:
        """See `EarlyStopping.next_heir`."""
        return self.scheduler.next_heir()

    def may_start_fresh(self, fresh_started: int) -> bool:
        """See `EarlyStopping.may_start_fresh`."""
        return self.scheduler.may_start_fresh(fresh_started)

    def end_of(self, trial: int) -> TrialOutcome | None:
        """How and why a trial was stopped."""
        return first_end(self.wishes.end_of(trial), self.scheduler.end_of(trial))


class SweepStopper(tune.Stopper):  # type: ignore[misc]
    """Tells Ray Tune when the user or the budget ends a trial, or all of them.

    Attributes:
        reason: Why all trials were told to end; empty before that.
    """

    def __init__(
        self,
        wishes: Wishes,
        budget: Budget,
        share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ends all trials when this part of the budget is spent."""
        self._wishes, self._budget, self._share = wishes, budget, share
        self._clock, self._looked_at = clock, -math.inf
        self.reason = ""

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its stoppers; a copy ends nothing.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether this trial ends."""
        return "trial" in result and self._wishes.is_stopped(result["trial"])

    def stop_all(self) -> bool:
        """Whether all trials end."""
        now = self._clock()
        if not self._wishes.is_cancelled and now - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = now
            self.reason = self._budget.exhausted(self._share)
        return self._wishes.is_cancelled or bool(self.reason)
