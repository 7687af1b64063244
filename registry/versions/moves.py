"""Move an alias through the ledger: of two concurrent processes one gets a conflict.

    read the ledger --> write the next slot --> set the alias --> mark the slot done
                          taken: read again     killed: the next process finishes the move

MLflow alone cannot do this: setting an alias overwrites the value that another process set.
"""

from __future__ import annotations

import getpass
import logging
import os
import time
from dataclasses import replace
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry.errors import ConflictError, RetiredError
from registry.tracking.connection import if_exists, is_missing
from registry.versions.entries import AliasMove
from registry.versions.ledger import (
    Ledger,
    append,
    ensure_model,
    mark,
    moves_from_outside,
    read_ledger,
)
from registry.versions.versions import RETIRED_TAG

logger = logging.getLogger(__name__)

_TRIES = 20
# A process needs about 0.1 s between writing a slot and setting the alias. Other processes finish
# the move after a wait of `_PATIENCE_S`, or at once if the move is older than `_OLD_S`.
_PATIENCE_S = 5.0
_OLD_S = 60.0


def settle(client: MlflowClient, name: str) -> Ledger:
    """The ledger of an adapter, brought in line with its aliases.

    Moves that were cut short are finished, after a wait for the process that may still be at
    work. Moves that somebody made in MLflow itself are written down.

    Raises:
        ConflictError: Other processes keep moving aliases.
    """
    run_id = ensure_model(client, name)
    deadline = time.monotonic() + _PATIENCE_S
    for _ in range(_TRIES):
        ledger = _await_others(client, name, run_id, deadline)
        outside = [] if ledger.unfinished else moves_from_outside(ledger)
        if not ledger.unfinished and not outside:
            return ledger
        for cut_short in ledger.unfinished:
            _finish(client, name, ledger, cut_short)
        _record_outside(client, run_id, outside)
    raise _conflict(name, "its aliases")


def move(
    client: MlflowClient,
    name: str,
    alias: str,
    target: int | None,
    why: str,
    *,
    expected: int | None = None,
    is_rollback: bool = False,
) -> AliasMove | None:
    """Point an alias at a version, or remove the alias; `None` if there is nothing to change.

    Args:
        client: Of the server.
        name: Adapter.
        alias: Name of the alias.
        target: Version to point at; `None` removes the alias.
        why: Reason for the ledger.
        expected: Number of the alias's latest move that the caller knows.
        is_rollback: Whether this move undoes earlier moves.

    Raises:
        ConflictError: The alias was moved since `expected`.
        RetiredError: The version was retired meanwhile.
    """
    for _ in range(_TRIES):
        ledger = settle(client, name)
        if expected is not None and ledger.last_number(alias) != expected:
            raise _conflict(name, f"alias {alias!r}")
        source = ledger.aliases.get(alias)
        if source == target:
            return None
        wanted = AliasMove(
            number=ledger.slots + 1,
            alias=alias,
            source=source,
            target=target,
            who=current_user(),
            at=datetime.now(UTC),
            why=why,
            is_rollback=is_rollback,
            is_done=False,
        )
        try:
            append(client, ledger.run_id, wanted)
        except ConflictError:
            continue  # the slot may hold the move of another alias: read again
        _carry_out(client, name, ledger.run_id, wanted)
        logger.info("%s: alias %s from %s to %s: %s", name, alias, source, target, why)
        return replace(wanted, is_done=True)
    raise _conflict(name, f"alias {alias!r}")


def current_user() -> str:
    """Name of the user for the ledger: of the MLflow account, else of the operating system."""
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _carry_out(client: MlflowClient, name: str, run_id: str, wanted: AliasMove) -> None:
    """Set the alias of a move whose slot this process has written.

    Raises:
        RetiredError: The version was retired after the caller looked.
    """
    if _is_retired(client, name, wanted.target):
        mark(client, run_id, wanted, "void")
        raise RetiredError(
            f"adapter {name}/{wanted.target}: it is retired; allowed: versions in use. Take it "
            "back into use first: unretire."
        )
    try:
        _set_alias(client, name, wanted.alias, wanted.target)
    except MlflowException:
        mark(client, run_id, wanted, "void")
        raise
    _follow_later_moves(client, name, run_id, wanted)
    mark(client, run_id, wanted, "true")


def _await_others(client: MlflowClient, name: str, run_id: str, deadline: float) -> Ledger:
    """The ledger once no move is in progress, or after the deadline for the latest move."""
    while True:
        ledger = read_ledger(client, name, run_id)
        if not ledger.unfinished or time.monotonic() >= deadline:
            return ledger
        age_s = (datetime.now(UTC) - ledger.unfinished[-1].at).total_seconds()
        if age_s > _OLD_S:
            return ledger
        time.sleep(0.1)


def _record_outside(client: MlflowClient, run_id: str, outside: list[AliasMove]) -> None:
    try:
        for one in outside:
            append(client, run_id, one)
            mark(client, run_id, one, "true")
    except ConflictError as error:
        # A process set the alias between the two reads of this one, and wrote its move down.
        logger.info("not from outside: %s", error)


def _finish(client: MlflowClient, name: str, ledger: Ledger, move: AliasMove) -> None:
    """Finish a move that was cut short; void if the alias has gone elsewhere since."""
    present = ledger.aliases.get(move.alias)
    is_latest = ledger.last(move.alias) == move and present == move.source
    if is_latest and not _is_retired(client, name, move.target):
        logger.info("%s: finishing move %d of %s", name, move.number, move.alias)
        try:
            _set_alias(client, name, move.alias, move.target)
            present = move.target
        except MlflowException as error:
            if not is_missing(error):
                raise
            logger.info("%s/%s: it was deleted meanwhile", name, move.target)
    mark(client, ledger.run_id, move, "true" if present == move.target else "void")


def _follow_later_moves(client: MlflowClient, name: str, run_id: str, done: AliasMove) -> None:
    """Repeat later moves of other processes after a late write of this process."""
    while True:
        last = read_ledger(client, name, run_id).last(done.alias)
        if last is None or last.number == done.number:
            return
        _set_alias(client, name, done.alias, last.target)
        done = last


def _is_retired(client: MlflowClient, name: str, target: int | None) -> bool:
    """Whether a version is retired; a deleted version is not: setting its alias fails anyway."""
    if target is None:
        return False
    version = if_exists(client.get_model_version, name, str(target))
    return version is not None and RETIRED_TAG in version.tags


def _set_alias(client: MlflowClient, name: str, alias: str, target: int | None) -> None:
    if target is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, str(target))


def _conflict(name: str, what: str) -> ConflictError:
    return ConflictError(
        f"adapter {name}: another process moved {what} meanwhile; allowed: one at a time. Look at "
        "the history and decide again."
    )
