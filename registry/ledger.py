"""Who moved which alias, when and why, in an order that two processes cannot both write.

MLflow sets an alias whatever it was before, and keeps no record. A run's params can be written
once only: a second value for the same key is refused by the primary key of the params table, in
one step, by SQLite and PostgreSQL alike (mlflow/store/tracking/sqlalchemy_store.py, `log_param`).
So each adapter has one run whose params are the moves of its aliases:

    move.000001 = {"alias": "champion", "from": null, "to": 1, "who": ..., "at": ..., "why": ...}
    done.000001 = true   (a tag; `void` if the alias was not set in the end)

Whoever comes next finishes a move that was cut short: who may write runs in the experiment of the
ledgers may move aliases.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from registry.access import ADAPTERS_EXPERIMENT
from registry.connection import is_already_there, is_missing, plain_errors
from registry.errors import ConflictError
from registry.refs import require_name
from registry.search import find_runs
from registry.tracking import artifact_location_for, find_experiment, shortened

logger = logging.getLogger(__name__)

OUTSIDE = "outside lorchestra"
"""Who moved an alias that stands elsewhere than its last move put it."""

_LEDGER_TAG = "lorchestra.ledger"
_MOVE, _DONE = "move.", "done."
# MLflow cuts params at 6000 characters; JSON may make six of one.
_MAX_WHY = 800
_MAX_WHO = 100


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """An alias went from one version to another.

    Attributes:
        number: Place among all moves of the adapter's aliases, from 1.
        alias: Which.
        source: Version that it pointed at before, if any.
        target: Version that it points at since, if any.
        who: User, or `outside lorchestra`.
        at: When; for a move from outside, when it was noticed.
        why: In the words of whoever moved it.
        is_rollback: Whether it took the latest moves back.
        is_done: Whether the alias was set; otherwise it is about to be.
    """

    number: int
    alias: str
    source: int | None
    target: int | None
    who: str
    at: datetime
    why: str
    is_rollback: bool = False
    is_done: bool = True


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """An adapter's moves, oldest first, and where its aliases stand.

    Attributes:
        run_id: Of the run whose params they are.
        moves: Those that came to nothing left out.
        slots: How many slots are written.
        aliases: The version that each points at.
    """

    run_id: str
    moves: tuple[AliasMove, ...]
    slots: int
    aliases: Mapping[str, int]

    @property
    def undone(self) -> list[AliasMove]:
        """Moves whose process is at work, or was killed at it."""
        return [move for move in self.moves if not move.is_done]

    def last(self, alias: str) -> AliasMove | None:
        """The latest move of an alias."""
        return next((move for move in reversed(self.moves) if move.alias == alias), None)

    def last_number(self, alias: str) -> int:
        """Number of the latest move of an alias; 0 when it was never moved."""
        move = self.last(alias)
        return 0 if move is None else move.number


def history(client: MlflowClient, name: str) -> list[AliasMove]:
    """All moves of an adapter's aliases, oldest first; an unknown name has none.

    Changes nothing: moves from outside that nobody noticed before are listed as noticed now.

    Raises:
        RefError: MLflow cannot hold the name.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    with plain_errors(client.tracking_uri):
        model = _find_model(client, name)
        if model is None:
            return []
        ledger = _ledger(_find_run(client, model), model)
        undone = {move.alias for move in ledger.undone}
        outside = [move for move in moves_from_outside(ledger) if move.alias not in undone]
        return [*ledger.moves, *outside]


def ensure_model(client: MlflowClient, name: str) -> str:
    """Make the registered model if there is none, and its ledger; gives the ledger's run id."""
    model = _find_model(client, name)
    if model is None:
        run_id = _create_run(client, name)
        try:
            # One step: whoever makes the model has made the only ledger.
            client.create_registered_model(name, tags={_LEDGER_TAG: run_id})
        except MlflowException as error:
            client.delete_run(run_id)
            if not is_already_there(error):
                raise
            model = client.get_registered_model(name)
        else:
            return run_id
    run = _find_run(client, model)
    if run is None:
        return _adopt(client, name)
    if run.info.lifecycle_stage == "deleted":
        client.restore_run(run.info.run_id)
    return str(run.info.run_id)


def read_ledger(client: MlflowClient, name: str, run_id: str) -> Ledger:
    """The ledger as it is, and where the aliases stand."""
    # The moves first: of an alias that is moved meanwhile, the next slot is taken.
    run = client.get_run(run_id)
    return _ledger(run, client.get_registered_model(name))


def moves_from_outside(ledger: Ledger) -> list[AliasMove]:
    """Moves that would bring the ledger to where the aliases stand."""
    names = sorted({move.alias for move in ledger.moves} | set(ledger.aliases))
    found: list[AliasMove] = []
    for alias in names:
        last = ledger.last(alias)
        was, now = None if last is None else last.target, ledger.aliases.get(alias)
        if was != now:
            found.append(
                AliasMove(
                    number=ledger.slots + len(found) + 1,
                    alias=alias,
                    source=was,
                    target=now,
                    who=OUTSIDE,
                    at=datetime.now(UTC),
                    why="found in MLflow",
                )
            )
    return found


def append(client: MlflowClient, run_id: str, move: AliasMove) -> None:
    """Write a move into its slot.

    Raises:
        ConflictError: Another process wrote that slot.
    """
    key, text = f"{_MOVE}{move.number:06d}", _text(move)
    try:
        client.log_param(run_id, key, text)
    except MlflowException as error:
        written = client.get_run(run_id).data.params.get(key)
        if written is None:
            raise
        if written != text:
            raise ConflictError(
                f"alias {move.alias!r}: another process wrote move {move.number} first; allowed: "
                "one at a time. Look at the history and decide again."
            ) from error


def adapters_experiment(client: MlflowClient) -> str:
    """Id of the experiment of what no sweep recorded: ledgers, and adapters without a run."""
    return find_experiment(client, ADAPTERS_EXPERIMENT, artifact_location_for(client.tracking_uri))


def mark(
    client: MlflowClient, run_id: str, move: AliasMove, outcome: Literal["true", "void"]
) -> None:
    """Note that the alias was set, or that it was not."""
    client.set_tag(run_id, f"{_DONE}{move.number:06d}", outcome)


def _find_model(client: MlflowClient, name: str) -> RegisteredModel | None:
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def _find_run(client: MlflowClient, model: RegisteredModel) -> Run | None:
    run_id = model.tags.get(_LEDGER_TAG)
    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def _create_run(client: MlflowClient, name: str) -> str:
    run = client.create_run(
        adapters_experiment(client), tags=_identity(name), run_name=f"aliases of {name}"
    )
    client.set_terminated(run.info.run_id)  # it can be written to all the same
    return str(run.info.run_id)


def _adopt(client: MlflowClient, name: str) -> str:
    """A ledger for a model that was made without; processes that do so at once agree on one."""
    experiments = [adapters_experiment(client)]
    if not any(find_runs(client, experiments, _identity(name))):
        _create_run(client, name)
    oldest = next(find_runs(client, experiments, _identity(name)))
    client.set_registered_model_tag(name, _LEDGER_TAG, oldest.info.run_id)
    return str(client.get_registered_model(name).tags[_LEDGER_TAG])


def _identity(name: str) -> dict[str, str]:
    return {"lorchestra.kind": "ledger", "lorchestra.adapter": name}


def _ledger(run: Run | None, model: RegisteredModel) -> Ledger:
    params = {} if run is None else run.data.params
    tags = {} if run is None else run.data.tags
    slots = sorted(key.removeprefix(_MOVE) for key in params if key.startswith(_MOVE))
    moves = [_read(slot, params[_MOVE + slot], tags.get(_DONE + slot)) for slot in slots]
    return Ledger(
        run_id="" if run is None else run.info.run_id,
        moves=tuple(move for move in moves if move is not None),
        slots=len(slots),
        aliases={alias: int(version) for alias, version in model.aliases.items()},
    )


def _read(slot: str, text: str, outcome: str | None) -> AliasMove | None:
    record = json.loads(text)
    if outcome == "void":
        return None
    return AliasMove(
        number=int(slot),
        alias=record["alias"],
        source=record["from"],
        target=record["to"],
        who=record["who"],
        at=datetime.fromisoformat(record["at"]),
        why=record["why"],
        is_rollback=record["rollback"],
        is_done=outcome is not None,
    )


def _text(move: AliasMove) -> str:
    record: dict[str, Any] = {
        "alias": move.alias,
        "from": move.source,
        "to": move.target,
        "who": shortened(move.who, _MAX_WHO),
        "at": move.at.isoformat(timespec="milliseconds"),
        "why": shortened(move.why, _MAX_WHY),
        "rollback": move.is_rollback,
        # Two processes that want the same at the same time are two all the same.
        "nonce": uuid.uuid4().hex,
    }
    return json.dumps(record)
