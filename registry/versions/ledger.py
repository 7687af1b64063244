"""History of alias moves, in numbered slots that can be written once each.

MLflow overwrites an alias without a check and keeps no history. A param of a run, however, can be
written once: the primary key of the params table refuses a second value in one step, in SQLite
and PostgreSQL alike (mlflow/store/tracking/sqlalchemy_store.py, `log_param`). So each adapter has
one run whose params are the moves of its aliases:

    move.000001 = {"alias": "champion", "from": null, "to": 1, "who": ..., "at": ..., "why": ...}
    done.000001 = true   (a tag; `void` if the alias was not set in the end)
    challenge.000001 = {"champion": 1, "candidate": 2, "data": "sha256:...", "number": 1, ...}

A challenge is written before the gate decides: it counts even if the process ends before the
decision. The next process finishes a move that was cut short. Users who may write runs in the
experiment of the ledgers may move aliases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from registry.errors import ConflictError
from registry.tracking.connection import if_exists, is_already_there, plain_errors
from registry.tracking.experiments import adapters_experiment
from registry.tracking.search import find_runs
from registry.versions.entries import (
    OUTSIDE,
    AliasMove,
    Challenge,
    format_challenge,
    format_move,
    parse_challenge,
    parse_move,
)
from registry.versions.refs import require_name

_ABOUT = (
    "Versions of the LoRA adapter `{name}`. `{name}@champion` is the version in use. The card of "
    "each version says how it was trained and measured. `lorchestra adapters history {name}` "
    "lists who moved an alias, when and why."
)
"""Description of a registered model, in Markdown."""

_LEDGER_TAG = "lorchestra.ledger"
_MOVE, _DONE, _CHALLENGE = "move.", "done.", "challenge."
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The moves of an adapter's aliases, oldest first, and its aliases at present.

    Attributes:
        run_id: Run that keeps the moves.
        moves: All moves but those marked void.
        slots: Number of written slots, void ones included.
        aliases: Version of each alias.
    """

    run_id: str
    moves: tuple[AliasMove, ...]
    slots: int
    aliases: Mapping[str, int]

    @property
    def unfinished(self) -> list[AliasMove]:
        """Moves in progress, or cut short when their process was killed."""
        return [move for move in self.moves if not move.is_done]

    def last(self, alias: str) -> AliasMove | None:
        """The latest move of an alias."""
        return next((move for move in reversed(self.moves) if move.alias == alias), None)

    def last_number(self, alias: str) -> int:
        """Number of the latest move of an alias; 0 when it was never moved."""
        move = self.last(alias)
        return 0 if move is None else move.number


def history(client: MlflowClient, name: str) -> list[AliasMove]:
    """All moves of an adapter's aliases, oldest first; none for an unknown name.

    Moves from outside that are not in the ledger are listed with the present time. Nothing is
    written.

    Raises:
        RefError: MLflow cannot hold the name.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    with plain_errors(client.tracking_uri):
        model = if_exists(client.get_registered_model, name)
        if model is None:
            return []
        ledger = _ledger(_find_run(client, model), model)
        unfinished = {move.alias for move in ledger.unfinished}
        outside = [move for move in moves_from_outside(ledger) if move.alias not in unfinished]
        return [*ledger.moves, *outside]


def challenges(client: MlflowClient, name: str) -> list[Challenge]:
    """All challenges of an adapter's champions, oldest first; none for an unknown name.

    Raises:
        RefError: MLflow cannot hold the name.
        TrackingError: The server cannot be used.
    """
    require_name(name)
    with plain_errors(client.tracking_uri):
        model = if_exists(client.get_registered_model, name)
        run = None if model is None else _find_run(client, model)
        return [] if run is None else _challenges(run)


def count_challenge(client: MlflowClient, run_id: str, challenge: Challenge) -> Challenge:
    """Number a challenge; a new challenge is written into the ledger.

    Raises:
        ConflictError: Other processes kept writing challenges.
    """
    for _ in range(_TRIES):
        known = _challenges(client.get_run(run_id))
        same = next((one for one in known if challenge.is_same(one)), None)
        if same is not None:
            return same
        number = 1 + sum(one.count_key == challenge.count_key for one in known)
        counted = replace(challenge, number=number)
        slot = f"{_CHALLENGE}{len(known) + 1:06d}"
        if _write_once(client, run_id, slot, format_challenge(counted)):
            return counted
    raise ConflictError(
        f"version {challenge.candidate}: other processes wrote {_TRIES} challenges meanwhile; "
        "allowed: one at a time. Promote it again."
    )


def ensure_model(client: MlflowClient, name: str) -> str:
    """Run id of an adapter's ledger; makes the registered model and the ledger if missing."""
    model = if_exists(client.get_registered_model, name)
    if model is None:
        run_id = _create_run(client, name)
        try:
            # In one step: the process that creates the model has created the only ledger.
            client.create_registered_model(name, {_LEDGER_TAG: run_id}, _ABOUT.format(name=name))
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
    """The ledger and the aliases at present."""
    # The moves are read first: a move between the two reads then looks like a move from outside,
    # and recording it fails, because its slot is taken.
    run = client.get_run(run_id)
    return _ledger(run, client.get_registered_model(name))


def moves_from_outside(ledger: Ledger) -> list[AliasMove]:
    """Moves that explain where the aliases differ from the ledger."""
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
        ConflictError: Another process wrote the slot first.
    """
    if not _write_once(client, run_id, f"{_MOVE}{move.number:06d}", format_move(move)):
        raise ConflictError(
            f"alias {move.alias!r}: another process wrote move {move.number} first; allowed: "
            "one at a time. Look at the history and decide again."
        )


def mark(
    client: MlflowClient, run_id: str, move: AliasMove, outcome: Literal["true", "void"]
) -> None:
    """Mark a move as done (`true`) or as never carried out (`void`)."""
    client.set_tag(run_id, f"{_DONE}{move.number:06d}", outcome)


def _write_once(client: MlflowClient, run_id: str, key: str, text: str) -> bool:
    """Whether this process was the first to write the param."""
    try:
        client.log_param(run_id, key, text)
    except MlflowException:
        written = client.get_run(run_id).data.params.get(key)
        if written is None:
            raise
        return bool(written == text)
    return True


def _find_run(client: MlflowClient, model: RegisteredModel) -> Run | None:
    run_id = model.tags.get(_LEDGER_TAG)
    return None if run_id is None else if_exists(client.get_run, run_id)


def _create_run(client: MlflowClient, name: str) -> str:
    run = client.create_run(
        adapters_experiment(client), tags=_identity(name), run_name=f"aliases of {name}"
    )
    client.set_terminated(run.info.run_id)  # MLflow lets a finished run be written
    return str(run.info.run_id)


def _adopt(client: MlflowClient, name: str) -> str:
    """Give a ledger to a model that has none; processes at the same time agree on the oldest."""
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
    outcomes = {slot: tags.get(_DONE + slot) for slot in slots}
    return Ledger(
        run_id="" if run is None else run.info.run_id,
        moves=tuple(
            parse_move(int(slot), params[_MOVE + slot], is_done=outcome is not None)
            for slot, outcome in outcomes.items()
            if outcome != "void"
        ),
        slots=len(slots),
        aliases={alias: int(version) for alias, version in model.aliases.items()},
    )


def _challenges(run: Run) -> list[Challenge]:
    keys = sorted(key for key in run.data.params if key.startswith(_CHALLENGE))
    return [parse_challenge(run.data.params[key]) for key in keys]
