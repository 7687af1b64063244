"""Requests of a user from a second terminal: stop a trial, or cancel the sweep.

A request is a small file in the sweep's folder for a running driver. Without a driver, the command
writes the log itself, under the log's lock.

On Kubernetes, `lorchestra cancel` and `stop` write a ConfigMap that is mounted in the driver's pod
at `$LORCHESTRA_REQUESTS`. The driver cannot remove such a request; it reads each of them once.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter

from orchestrator.errors import SweepInUseError, SweepSpecError
from orchestrator.journal.events import SessionLost, SweepEnded, TrialEnded
from orchestrator.journal.history import TrialRecord
from orchestrator.journal.log import EventLog
from orchestrator.journal.paths import REQUESTS_FOLDER, bundle_folder
from orchestrator.journal.sweep_storage import SweepStorage, read_history
from orchestrator.outcome import Outcome, TrialOutcome
from orchestrator.wording import refusal

logger = logging.getLogger(__name__)

STOPPED_BY_USER = TrialOutcome(Outcome.CANCELLED, "stopped by the user")
CANCELLED_BY_USER = "the sweep was cancelled by the user"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request of the user.

    Attributes:
        kind: `stop` ends one trial, `cancel` the sweep.
        trial: Number of the trial to stop.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    kind: Literal["stop", "cancel"]
    trial: int | None = None


PHASES_AFTER_TRAINING = ("evaluating serving forms", "registering", "recording")
"""Phases of a run after whose end a cancel comes too late."""

REQUESTS_VARIABLE = "LORCHESTRA_REQUESTS"
"""Environment variable with a folder of requests that this process may only read."""

_REQUEST = TypeAdapter(Request)


class UserRequests:
    """All requests to a sweep so far; thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._stopped: set[int] = set()
        self._is_cancelled = False

    def add(self, request: Request) -> None:
        """Take in a request."""
        with self._guard:
            if request.kind == "cancel":
                self._is_cancelled = True
            elif request.trial is not None:
                self._stopped.add(request.trial)

    def is_stopped(self, trial: int) -> bool:
        """Whether the user asked to stop a trial."""
        with self._guard:
            return trial in self._stopped

    def end_of(self, trial: int) -> TrialOutcome | None:
        """Outcome of a trial that the user stopped; `None` for other trials."""
        return STOPPED_BY_USER if self.is_stopped(trial) else None

    @property
    def is_cancelled(self) -> bool:
        """Whether the user asked to cancel the sweep."""
        with self._guard:
            return self._is_cancelled


def post_request(storage: SweepStorage, request: Request) -> None:
    """Leave a request for the driver of a sweep on any machine."""
    name = f"{REQUESTS_FOLDER}/{uuid.uuid4().hex}.json"
    storage.send(name, json.dumps(asdict(request)).encode())


def take_requests(folder: Path) -> list[Request]:
    """Take the requests from the driver's folder; files that are no requests are dropped."""
    taken = []
    for path in sorted((folder / REQUESTS_FOLDER).glob("*.json")):
        try:
            taken.append(_REQUEST.validate_json(path.read_bytes()))
        except (OSError, ValueError) as error:
            logger.warning("%s is not a request: %s", path, error)
        path.unlink()
    return taken


class MountedRequests:
    """Requests in the folder that `$LORCHESTRA_REQUESTS` names; none without the variable."""

    def __init__(self) -> None:
        named = os.environ.get(REQUESTS_VARIABLE, "").strip()
        self._folder = Path(named) if named else None
        self._read: set[tuple[str, bytes]] = set()

    def read_new(self) -> list[Request]:
        """Requests that were not read before; files that are no requests are left out.

        Raises:
            OSError: A file cannot be read.
        """
        found = []
        for path in sorted(self._folder.glob("*.json")) if self._folder is not None else ():
            content = path.read_bytes()
            if (path.name, content) in self._read:
                continue
            self._read.add((path.name, content))
            try:
                found.append(_REQUEST.validate_json(content))
            except ValueError as error:
                logger.warning("%s is not a request: %s", path, error)
        return found


def stop_trial(storage: SweepStorage, trial: int) -> str:
    """Stop a trial, with or without a running driver; returns a sentence for the user.

    Raises:
        SweepSpecError: The trial does not exist or has ended.
    """
    history = read_history(storage.location)
    record = history.trials.get(trial)
    running = [one.number for one in history.unfinished()]
    if record is None or record.outcome is not None:
        allowed = f"a trial without an end: {', '.join(map(str, running)) or 'there is none'}"
        ended = "" if record is None else f"which is {record.outcome}"
        raise SweepSpecError(refusal("stop", trial, allowed, "See lorchestra status.", flaw=ended))
    try:
        with storage.open_log() as events:
            events.append(SessionLost())
            end_cancelled(events, record, STOPPED_BY_USER.reason)
    except SweepInUseError:
        post_request(storage, Request(kind="stop", trial=trial))
        return f"trial {trial} is told to stop"
    return f"trial {trial} is stopped; no driver is running the sweep"


def cancel_sweep(storage: SweepStorage) -> str:
    """Cancel a sweep, with or without a running driver; returns a sentence for the user.

    Raises:
        SweepSpecError: The sweep has ended, or trains no more.
    """
    history = read_history(storage.location)
    if history.status != "running":
        raise SweepSpecError(
            refusal(
                "cancel",
                storage.location,
                "a sweep without an end",
                "There is nothing to cancel.",
                flaw=f"which is {history.status}",
            )
        )
    try:
        with storage.open_log() as events:
            events.append(SessionLost())
            for record in history.unfinished():
                end_cancelled(events, record, CANCELLED_BY_USER)
            events.append(SweepEnded(status=Outcome.CANCELLED, reason=CANCELLED_BY_USER))
    except SweepInUseError:
        if history.last_phase in PHASES_AFTER_TRAINING:
            raise SweepSpecError(
                refusal(
                    "cancel",
                    storage.location,
                    "a sweep that still trains or evaluates",
                    "Wait for its end; `lorchestra adapters retire` takes a version back.",
                    flaw="which registers its adapters now",
                )
            ) from None
        post_request(storage, Request(kind="cancel"))
        return "the sweep is told to end"
    return "the sweep is cancelled; no driver was running it"


def end_cancelled(events: EventLog, record: TrialRecord, reason: str) -> None:
    """Record the cancellation of a trial; a later run exports the adapter from the saved state."""
    events.append(
        TrialEnded(
            trial=record.number,
            outcome=Outcome.CANCELLED,
            reason=reason,
            step=record.step,
            bundle=bundle_folder(record.number) if record.reports else None,
            by="user",
        )
    )
