"""Aliases stand where the ledger says, whoever was killed on the way and whoever came between."""

import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry import Registry
from registry.errors import ConflictError, RetiredError
from registry.versions.entries import AliasMove
from registry.versions.ledger import append, ensure_model
from registry.versions.moves import current_user, move, settle
from registry.versions.versions import RETIRED_TAG

LONG_AGO = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
def model(client: MlflowClient, name: str) -> str:
    """A registered model with three versions without files."""
    ensure_model(client, name)
    for _ in range(3):
        client.create_model_version(name, source="file:///nowhere", await_creation_for=0)
    return name


def stands(client: MlflowClient, name: str, alias: str = "champion") -> int | None:
    found = client.get_registered_model(name).aliases.get(alias)
    return None if found is None else int(found)


def targets(client: MlflowClient, name: str, alias: str = "champion") -> list[int | None]:
    return [one.target for one in settle(client, name).moves if one.alias == alias]


def begun(number: int, source: int | None, target: int, at: datetime = LONG_AGO) -> AliasMove:
    """A move whose process was killed before it set the alias, or after."""
    return AliasMove(
        number=number, alias="champion", source=source, target=target, who="ann", at=at,
        why="", is_done=False,
    )  # fmt: skip


def test_move_sets_the_alias_and_says_who_and_why(
    client: MlflowClient, model: str, adapters: Registry
) -> None:
    made = move(client, model, "champion", 1, "the first")
    assert made is not None
    assert (made.number, made.source, made.target, made.is_done) == (1, None, 1, True)
    move(client, model, "champion", 2, "better")
    move(client, model, "champion", None, "none is good")
    assert stands(client, model) is None
    listed = adapters.history(model)
    assert [(one.source, one.target, one.why) for one in listed] == [
        (None, 1, "the first"), (1, 2, "better"), (2, None, "none is good"),
    ]  # fmt: skip
    assert {one.who for one in listed} == {current_user()}
    assert all(one.is_done for one in listed)


def test_alias_that_stands_there_is_not_moved(client: MlflowClient, model: str) -> None:
    move(client, model, "champion", 1, "")
    assert move(client, model, "champion", 1, "") is None
    assert targets(client, model) == [1]


def test_user_of_the_server_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "release-bot")
    assert current_user() == "release-bot"


def test_move_since_what_was_expected_is_a_conflict(client: MlflowClient, model: str) -> None:
    move(client, model, "champion", 1, "", expected=0)
    move(client, model, "blue", 3, "")
    move(client, model, "champion", 2, "", expected=1)  # another alias is no obstacle
    with pytest.raises(ConflictError, match="moved alias 'champion'"):
        move(client, model, "champion", 3, "", expected=1)
    assert stands(client, model) == 2


@pytest.mark.parametrize("alias_was_set", [False, True])
def test_move_that_was_cut_short_is_finished(
    client: MlflowClient, model: str, alias_was_set: bool
) -> None:
    move(client, model, "champion", 1, "")
    append(client, ensure_model(client, model), begun(2, 1, 2))
    if alias_was_set:
        client.set_registered_model_alias(model, "champion", "2")
    ledger = settle(client, model)
    assert (stands(client, model), ledger.unfinished) == (2, [])
    assert targets(client, model) == [1, 2]


def test_move_that_was_cut_short_and_overtaken_came_to_nothing(
    client: MlflowClient, model: str
) -> None:
    move(client, model, "champion", 1, "")
    append(client, ensure_model(client, model), begun(2, 1, 2))
    client.set_registered_model_alias(model, "champion", "3")
    moves = settle(client, model).moves
    assert stands(client, model) == 3
    assert [(one.source, one.target, one.who) for one in moves[1:]] == [
        (1, 3, "outside lorchestra")
    ]


def test_cut_short_move_to_a_version_that_is_gone_came_to_nothing(
    client: MlflowClient, model: str
) -> None:
    move(client, model, "champion", 1, "")
    append(client, ensure_model(client, model), begun(2, 1, 2))
    client.delete_model_version(model, "2")
    assert targets(client, model) == [1]
    assert stands(client, model) == 1


def test_cut_short_move_to_a_version_retired_since_came_to_nothing(
    client: MlflowClient, model: str
) -> None:
    run_id = ensure_model(client, model)
    move(client, model, "champion", 1, "")
    append(client, run_id, begun(2, 1, 2))
    client.set_model_version_tag(model, "2", RETIRED_TAG, "{}")
    settle(client, model)
    assert stands(client, model) == 1
    assert targets(client, model) == [1]
    with pytest.raises(RetiredError, match="2: it is retired"):
        move(client, model, "champion", 2, "in spite of that")
    assert stands(client, model) == 1


def test_failed_move_came_to_nothing(client: MlflowClient, model: str) -> None:
    with pytest.raises(MlflowException):
        move(client, model, "champion", 99, "")
    assert targets(client, model) == []
    made = move(client, model, "champion", 1, "")
    assert made is not None
    assert made.number == 2


def test_move_that_somebody_is_making_is_waited_for(client: MlflowClient, model: str) -> None:
    run_id = ensure_model(client, model)
    making = begun(1, None, 2, at=datetime.now(UTC))
    append(client, run_id, making)

    def finish() -> None:
        time.sleep(0.5)
        client.set_registered_model_alias(model, "champion", "2")
        client.set_tag(run_id, "done.000001", "true")

    thread = threading.Thread(target=finish)
    thread.start()
    with pytest.raises(ConflictError):
        move(client, model, "champion", 3, "", expected=0)
    thread.join()
    assert stands(client, model) == 2


@pytest.mark.parametrize("to", [3, None])
def test_move_made_in_mlflow_itself_is_written_down(
    client: MlflowClient, model: str, to: int | None
) -> None:
    move(client, model, "champion", 1, "")
    if to is None:
        client.delete_registered_model_alias(model, "champion")
    else:
        client.set_registered_model_alias(model, "champion", str(to))
    move(client, model, "champion", 2, "")
    moves = settle(client, model).moves
    assert [(one.source, one.target) for one in moves] == [(None, 1), (1, to), (to, 2)]
    assert moves[1].who == "outside lorchestra"
    assert len(moves) == 3


def test_version_that_is_deleted_takes_its_alias_along(client: MlflowClient, model: str) -> None:
    move(client, model, "champion", 1, "")
    client.delete_model_version(model, "1")
    assert targets(client, model) == [1, None]


def test_process_that_slept_does_not_undo_what_came_after(
    client: MlflowClient, model: str
) -> None:
    """Others finished its move and made another one before it set the alias."""
    run_id = ensure_model(client, model)

    class Slow:
        """A client that is stopped between the slot and the alias."""

        def __getattr__(self, name: str) -> object:
            return getattr(client, name)

        def set_registered_model_alias(self, model: str, alias: str, version: str) -> None:
            if version == "2":
                client.set_registered_model_alias(model, alias, "2")  # others finish it
                append(client, run_id, replace(begun(2, 2, 3), is_done=True))
                client.set_tag(run_id, "done.000001", "true")
                client.set_tag(run_id, "done.000002", "true")
            client.set_registered_model_alias(model, alias, version)

    move(Slow(), model, "champion", 2, "")
    assert stands(client, model) == 3
    assert targets(client, model) == [2, 3]


_RACER = """
import sys
from registry.tracking.connection import connect
from registry.versions.versions import RETIRED_TAG
from registry.errors import ConflictError, RetiredError
from registry.versions.moves import move, settle

def race(client, model, mine):
    won = 0
    for _ in range(4):
        expected = settle(client, model).last_number("champion")
        try:
            won += move(client, model, "champion", mine, "race", expected=expected) is not None
        except ConflictError:
            continue
    return won

if __name__ == "__main__":
    uri, model = sys.argv[1:]
    client = connect(uri)
    client.get_registered_model(model)
    print("ready", flush=True)
    sys.stdin.readline()
    print(race(client, model, 1))
"""


def test_racing_processes_write_one_chain(
    client: MlflowClient, model: str, tracking_uri: str
) -> None:
    racer = subprocess.Popen(
        [sys.executable, "-c", _RACER, tracking_uri, model],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert racer.stdout is not None
    assert racer.stdin is not None
    assert racer.stdout.readline() == "ready\n"
    racer.stdin.write("go\n")
    racer.stdin.flush()
    here: dict[str, Any] = {}
    exec(_RACER, here)
    won = here["race"](client, model, 2)
    won += int(racer.communicate(timeout=120)[0])
    moves = settle(client, model).moves
    assert len(moves) == won >= 2
    assert [one.source for one in moves] == [None, *(one.target for one in moves[:-1])]
    assert moves[-1].target == stands(client, model)


def test_racing_threads_write_one_chain(client: MlflowClient, model: str) -> None:
    racers = 5
    start, won = threading.Barrier(racers), []

    def run(mine: int) -> None:
        start.wait()
        for _ in range(2):
            try:
                won.append(move(client, model, f"alias-{mine % 2}", 1 + mine % 3, "race"))
            except ConflictError:
                continue

    threads = [threading.Thread(target=run, args=[mine]) for mine in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = settle(client, model)
    for alias in ("alias-0", "alias-1"):
        moves = [one for one in ledger.moves if one.alias == alias]
        assert [one.source for one in moves] == [None, *(one.target for one in moves[:-1])]
        assert moves[-1].target == stands(client, model, alias)
    assert len(ledger.moves) == sum(one is not None for one in won)
