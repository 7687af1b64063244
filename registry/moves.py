"""Move an alias by way of the ledger, so that of two who would move it at once one is told so.

    read the ledger --> write the next slot --> set the alias --> mark the slot done
                          taken: look again        killed: the next one who comes finishes it

MLflow's aliases alone cannot do this: setting one overwrites whatever another process set.
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

from registry.connection import is_missing
from registry.errors import ConflictError, RetiredError
from registry.ledger import (
    AliasMove,
    Ledger,
    append,
    ensure_model,
    mark,
    moves_from_outside,
    read_ledger,
)
from registry.versions import RETIRED_TAG

logger = logging.getLogger(__name__)

_TRIES = 20
# A process that is between writing a move and setting the alias needs some 0.1 s. Others leave it
# this long before they do it in its place, and do so at once when the move is old.
_PATIENCE_S = 5.0
_OLD_S = 60.0


def settle(client: MlflowClient, name: str) -> Ledger:
    """The ledger in line with the aliases.

    A move that was cut short is finished, or waited for while its process may be at it; one that
    somebody made in MLflow itself is written down.

    Raises:
        ConflictError: Others write all the time.
    """
    run_id = ensure_model(client, name)
    deadline = time.monotonic() + _PATIENCE_S
    for _ in range(_TRIES):
        ledger = _await_others(client, name, run_id, deadline)
        outside = [] if ledger.undone else moves_from_outside(ledger)
        if not ledger.undone and not outside:
            return ledger
        for cut_short in ledger.undone:
            _finish(client, name, ledger, cut_short)
        _note(client, run_id, outside)
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
    """Point an alias at a version, or at none; `None` when it stands there already.

    Args:
        client: Of the tracking server.
        name: Adapter.
        alias: Which.
        target: Version to point at.
        why: For the ledger.
        expected: Number of the latest move of this alias that the caller knows of.
        is_rollback: Whether it takes moves back.

    Raises:
        ConflictError: The alias was moved since `expected`.
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
            continue  # perhaps another alias was moved: look again
        if _is_retired(client, name, target):  # meanwhile
            mark(client, ledger.run_id, wanted, "void")
            raise RetiredError(
                f"adapter {name}/{target}: it is retired; allowed: versions in use. Take it back "
                "into use first: unretire."
            )
        try:
            _set_alias(client, name, alias, target)
        except MlflowException:
            mark(client, ledger.run_id, wanted, "void")
            raise
        _undo_delay(client, name, ledger.run_id, wanted)
        mark(client, ledger.run_id, wanted, "true")
        logger.info("%s: alias %s from %s to %s: %s", name, alias, source, target, why)
        return replace(wanted, is_done=True)
    raise _conflict(name, f"alias {alias!r}")


def current_user() -> str:
    """Who moves: as MLflow knows them, else as the machine does."""
    named = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _await_others(client: MlflowClient, name: str, run_id: str, deadline: float) -> Ledger:
    """The ledger once nobody is at work on it, or is so no more as far as can be told."""
    ledger = read_ledger(client, name, run_id)
    while ledger.undone and not _is_old(ledger.undone[-1]) and time.monotonic() < deadline:
        time.sleep(0.1)
        ledger = read_ledger(client, name, run_id)
    return ledger


def _note(client: MlflowClient, run_id: str, outside: list[AliasMove]) -> None:
    try:
        for one in outside:
            append(client, run_id, one)
            mark(client, run_id, one, "true")
    except ConflictError as error:
        # The alias was seen before its move was, which is written down by now.
        logger.info("not from outside: %s", error)


def _finish(client: MlflowClient, name: str, ledger: Ledger, move: AliasMove) -> None:
    """Do what a process that is gone was about to do, unless the alias went elsewhere."""
    now = ledger.aliases.get(move.alias)
    is_latest = ledger.last(move.alias) == move and now == move.source
    if is_latest and not _is_retired(client, name, move.target):
        logger.info("%s: finishing move %d of %s", name, move.number, move.alias)
        try:
            _set_alias(client, name, move.alias, move.target)
            now = move.target
        except MlflowException as error:
            if not is_missing(error):
                raise
            logger.info("%s/%s: it was deleted meanwhile", name, move.target)
    mark(client, ledger.run_id, move, "true" if now == move.target else "void")


def _undo_delay(client: MlflowClient, name: str, run_id: str, done: AliasMove) -> None:
    """Put the alias back where the ledger ends, if others went on while this process slept."""
    while True:
        last = read_ledger(client, name, run_id).last(done.alias)
        if last is None or last.number == done.number:
            return
        _set_alias(client, name, done.alias, last.target)
        done = last


def _is_retired(client: MlflowClient, name: str, target: int | None) -> bool:
    if target is None:
        return False
    try:
        return RETIRED_TAG in client.get_model_version(name, str(target)).tags
    except MlflowException as error:
        if not is_missing(error):
            raise
        return False  # setting the alias says so


def _set_alias(client: MlflowClient, name: str, alias: str, target: int | None) -> None:
    if target is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, str(target))


def _is_old(move: AliasMove) -> bool:
    return (datetime.now(UTC) - move.at).total_seconds() > _OLD_S


def _conflict(name: str, what: str) -> ConflictError:
    return ConflictError(
        f"adapter {name}: {what} was moved by another process meanwhile; allowed: one at a time. "
        "Look at its history and decide again."
    )
