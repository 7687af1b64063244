"""One run of Ray Tune: trials from a searcher, stopped by a scheduler, the budget or the user."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.execution import class_cache
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher

from orchestrator.hosts.pool import HostPool
from orchestrator.hosts.proxy import SeatReleaser, TrialProxy
from orchestrator.journal.paths import TUNE_FOLDER, bundle_folder
from orchestrator.journal.recording import SweepRecord, TrialRecorder
from orchestrator.journal.requests import CANCELLED_BY_USER, UserRequests
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.resources.nodes import look_at_nodes
from orchestrator.resources.room import proxy_resources
from orchestrator.search.budget import Budget
from orchestrator.supervision import SweepStopper

MAX_PROXY_FAILURES = 4
"""Times that Ray Tune starts the process of a trial again after it raised or died."""


class Rooms(Protocol):
    """Seats of a cluster that may grow; see `orchestrator.hosts.fleet.Fleet`."""

    @property
    def max_trials(self) -> int:
        """Most trials at the same time, now: those with a seat, and those in hope of one."""

    @property
    def hoped(self) -> int:
        """Trials that are started in the hope that the cluster grows."""


class StatisticsRemover(tune.Callback):  # type: ignore[misc]
    """Removes Ray Tune's statistics of a trial at its end, 35 KiB in memory that nobody reads.

    The next write of Ray Tune's own state makes its text anew, without them.
    """

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: Any
    ) -> None:
        """Remove minimum, mean and windows of every metric; the last result stays."""
        trial.run_metadata.metric_analysis, trial.run_metadata.metric_n_steps = {}, {}


class SeatLimiter(ConcurrencyLimiter):  # type: ignore[misc]
    """Lets Ray Tune start as many trials as there are seats, while their number changes.

    A trial that waits for a seat was chosen without the results that came meanwhile.

    Args:
        searcher: Proposes the trials.
        places: Gives the trials that can have a seat at this moment; running trials go on if it
            becomes smaller.
    """

    def __init__(self, searcher: Searcher, places: Callable[[], int]) -> None:
        super().__init__(searcher, max(1, places()))
        self._places = places

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its searcher; a copy proposes nothing.
        return {}

    def get_state(self) -> dict[str, Any]:
        """Nothing: the event log is the record of the search."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial; `None` while all seats are taken."""
        self.max_concurrent = max(1, self._places())  # or nothing would ever start
        suggestion: dict[str, Any] | None = super().suggest(trial_id)
        return suggestion


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The values that the search and the finals share for their runs of Ray Tune.

    Attributes:
        record: Record that gets the events.
        storage: Storage of the sweep.
        horizon: Steps of a trial that is never stopped.
        broker: The actor of `orchestrator.hosts.broker`.
        fleet: Says how many trials can have a seat at the same time, at every moment.
        budget: Budget of the sweep.
        requests: Requests of the user during the run.
        pool: The hosts; a pool that cannot go on ends the run.
    """

    record: SweepRecord
    storage: SweepStorage
    horizon: int
    broker: ActorHandle
    fleet: Rooms
    budget: Budget
    requests: UserRequests
    pool: HostPool

    def run(
        self,
        searcher: Searcher,
        scheduler: TrialScheduler,
        end_of: Callable[[int], TrialOutcome | None],
        share: float = 1.0,
        is_finals: bool = False,
    ) -> str:
        """Run trials until the searcher has no more, or the budget or the user ends all trials.

        Args:
            searcher: Proposes the trials.
            scheduler: Stops trials that are worse than others; carries metric and mode.
            end_of: Returns the scheduler's reason to stop a trial, or `None`.
            share: Share of the budget that may be spent.
            is_finals: Whether the trials are repeats, not trials of the search.

        Returns:
            Why trials were cut short; empty when every trial ended by itself.

        Raises:
            SweepStorageError: The log cannot be written, or a host's disk is full.
            ClusterError: The broker or too many hosts died, or a trial's process again and again;
                the trials in work are not recorded as ended.
        """
        stopper = SweepStopper(
            self.requests, self.budget, share, lambda: self.pool.problem is not None
        )
        folder = self.storage.folder / TUNE_FOLDER
        shutil.rmtree(folder, ignore_errors=True)  # pickles that nobody reads, of a killed driver
        recorder = TrialRecorder(self.record, self.horizon, end_of, self.requests, self.pool.check)
        # Ray Tune would write the credentials of AWS into a log of each node, in plain text.
        # Nodes have credentials of their own.
        class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
            {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
        )
        tuner = tune.Tuner(
            tune.with_resources(TrialProxy, proxy_resources(look_at_nodes())),
            tune_config=tune.TuneConfig(
                search_alg=SeatLimiter(searcher, self._places),
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{uuid.uuid4().hex[:8]}",
                storage_path=str(folder),
                callbacks=[
                    recorder,
                    SeatReleaser(self.broker),
                    StatisticsRemover(),
                ],
                stop=stopper,
                failure_config=tune.FailureConfig(max_failures=MAX_PROXY_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:
            # Ray Tune wraps the error of a callback; `problem` is the original error.
            raise self.record.problem or error from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.pool.check()
        return self._cut_short(stopper.reason, is_finals)

    def _places(self) -> int:
        """Trials that can have a seat at this moment, and those in hope of one."""
        return min(self.fleet.max_trials, self.pool.places() + self.fleet.hoped)

    def _cut_short(self, reason: str, is_finals: bool) -> str:
        """Record the end of trials cut short, for which Ray Tune calls no callback."""
        by = "user" if self.requests.is_cancelled else "budget"
        reason = CANCELLED_BY_USER if self.requests.is_cancelled else reason
        for trial in self.record.history.unfinished():
            if (trial.repeat_of is not None) != is_finals:
                continue
            ray.get(self.broker.leave.remote(trial.number, None, keep=True))
            self.record.end_trial(
                trial.number,
                TrialOutcome(Outcome.CANCELLED, reason or "ended with Ray Tune"),
                bundle_folder(trial.number) if trial.reports else None,
                by=by,
            )
        return reason
