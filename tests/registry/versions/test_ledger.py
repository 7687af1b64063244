"""Moves of aliases are written down once each, in one order, for one adapter in one place."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from registry import Registry
from registry.errors import ConflictError, RefError
from registry.versions.entries import AliasMove, Challenge
from registry.versions.ledger import (
    adapters_experiment,
    append,
    challenges,
    count_challenge,
    ensure_model,
    mark,
    read_ledger,
)


def new_move(
    number: int, target: int | None = 1, why: str = "it is better", *, is_rollback: bool = False
) -> AliasMove:
    return AliasMove(
        number=number, alias="champion", source=None, target=target, who="ann",
        at=datetime.now(UTC), why=why, is_rollback=is_rollback, is_done=False,
    )  # fmt: skip


def runs_of(client: MlflowClient, name: str) -> list[str]:
    wanted = f"tags.`lorchestra.adapter` = '{name}'"
    return [run.info.run_id for run in client.search_runs([adapters_experiment(client)], wanted)]


def test_move_is_read_as_it_was_written(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    written = new_move(1, is_rollback=True)
    append(client, run_id, written)
    (found,) = read_ledger(client, name, run_id).unfinished
    assert (found.number, found.alias, found.source, found.target) == (1, "champion", None, 1)
    assert (found.who, found.why, found.is_rollback) == ("ann", "it is better", True)
    assert abs((found.at - written.at).total_seconds()) < 0.01
    mark(client, run_id, written, "true")
    ledger = read_ledger(client, name, run_id)
    assert ledger.unfinished == []
    assert (ledger.last_number("champion"), ledger.last_number("blue")) == (1, 0)


def test_slot_is_written_once(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    append(client, run_id, new_move(1, target=1))
    with pytest.raises(ConflictError, match="move 1 first"):
        append(client, run_id, new_move(1, target=2))
    assert [move.target for move in read_ledger(client, name, run_id).moves] == [1]


def test_the_same_move_by_two_processes_is_two_moves(client: MlflowClient, name: str) -> None:
    """Or both would think that they had moved it."""
    run_id = ensure_model(client, name)
    same = new_move(1)
    append(client, run_id, same)
    with pytest.raises(ConflictError):
        append(client, run_id, same)


def test_of_many_who_write_a_slot_at_once_one_does(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    for slot in range(1, 4):
        start, outcomes = threading.Barrier(6), []

        def write(target: int, slot: int = slot, start: threading.Barrier = start,
                  outcomes: list[object] = outcomes) -> None:  # fmt: skip
            start.wait()
            try:
                append(client, run_id, new_move(slot, target))
                outcomes.append(target)
            except ConflictError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=write, args=[target]) for target in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [one for one in outcomes if isinstance(one, int)]
        assert len(outcomes) == 6
        assert [read_ledger(client, name, run_id).moves[slot - 1].target] == winners


def new_challenge(candidate: int, data: str = "sha256:cc") -> Challenge:
    return Challenge(
        champion=1, candidate=candidate, data=data, data_name="test",
        evaluation=f"sha256:{candidate}", metric="loss", who="ann", at=datetime.now(UTC),
    )  # fmt: skip


def test_challenges_are_numbered_by_champion_and_rows(client: MlflowClient, name: str) -> None:
    assert challenges(client, name) == []
    run_id = ensure_model(client, name)
    append(client, run_id, new_move(1))
    wanted = [(2, "cc", 1), (3, "cc", 2), (2, "cc", 1), (3, "other", 1), (4, "cc", 3)]
    for candidate, data, number in wanted:
        counted = count_challenge(client, run_id, new_challenge(candidate, data))
        assert (counted.candidate, counted.data, counted.number) == (candidate, data, number)
    assert [one.number for one in challenges(client, name)] == [1, 2, 1, 3]
    assert read_ledger(client, name, run_id).slots == 1


def test_challenges_at_once_have_different_numbers(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    start, numbers = threading.Barrier(5), []

    def challenge(candidate: int) -> None:
        start.wait()
        numbers.append(count_challenge(client, run_id, new_challenge(candidate)).number)

    threads = [threading.Thread(target=challenge, args=[one]) for one in range(2, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [1, 2, 3, 4, 5]


def test_void_move_is_no_move_and_its_slot_stays_used(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    append(client, run_id, new_move(1))
    mark(client, run_id, new_move(1), "void")
    ledger = read_ledger(client, name, run_id)
    assert (ledger.moves, ledger.slots) == ((), 1)


def test_long_texts_are_cut_before_mlflow_cuts_them(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    append(client, run_id, new_move(1, why="é\x01" * 9000))
    (found,) = read_ledger(client, name, run_id).moves
    assert found.why.endswith("…")


def test_adapter_has_one_ledger_however_many_make_it(client: MlflowClient, name: str) -> None:
    start, found = threading.Barrier(5), []

    def make() -> None:
        start.wait()
        found.append(ensure_model(client, name))

    threads = [threading.Thread(target=make) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert runs_of(client, name) == [found[0]]
    assert ensure_model(client, name) == found[0]


def test_model_that_was_made_without_gets_a_ledger(client: MlflowClient, name: str) -> None:
    client.create_registered_model(name)
    run_id = ensure_model(client, name)
    assert ensure_model(client, name) == run_id
    assert runs_of(client, name) == [run_id]


def test_ledger_that_was_deleted_comes_back(client: MlflowClient, name: str) -> None:
    run_id = ensure_model(client, name)
    append(client, run_id, new_move(1))
    client.delete_run(run_id)
    assert ensure_model(client, name) == run_id
    append(client, run_id, new_move(2))
    assert read_ledger(client, name, run_id).slots == 2


def test_history_only_reads_and_shows_what_nobody_wrote_down(
    adapters: Registry, client: MlflowClient, name: str
) -> None:
    assert adapters.history(name) == []
    with pytest.raises(MlflowException):
        client.get_registered_model(name)
    client.create_registered_model(name)
    client.create_model_version(name, source="file:///nowhere", await_creation_for=0)
    client.set_registered_model_alias(name, "champion", "1")
    (found,) = adapters.history(name)
    assert (found.who, found.source, found.target) == ("outside lorchestra", None, 1)
    assert runs_of(client, name) == []
    with pytest.raises(RefError):
        adapters.history("a/b")


def test_move_that_is_being_made_is_listed_as_such(
    adapters: Registry, client: MlflowClient, name: str, write_two: Callable[[str], None]
) -> None:
    write_two(name)
    append(client, ensure_model(client, name), new_move(1))
    (found,) = adapters.history(name)
    assert (found.target, found.is_done) == (1, False)


@pytest.fixture
def write_two(client: MlflowClient) -> Callable[[str], None]:
    """Makes versions without files."""

    def build(name: str) -> None:
        ensure_model(client, name)
        for _ in range(2):
            client.create_model_version(name, source="file:///nowhere", await_creation_for=0)

    return build
