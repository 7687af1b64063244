"""Aliases go where they are sent and back; versions out of use have none."""

import threading
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from registry import Registry
from registry.errors import AdapterNotFoundError, ConflictError, RefError, RetiredError
from registry.versions.aliases import move_alias
from registry.versions.ledger import ensure_model
from registry.versions.versions import DIGEST_TAG


@pytest.fixture
def add(client: MlflowClient, name: str) -> Callable[[], str]:
    """Makes a version without files, as nothing here reads them."""

    def build() -> str:
        ensure_model(client, name)
        tags = {DIGEST_TAG: "sha256:00"}
        client.create_model_version(name, "file:///nowhere", tags=tags, await_creation_for=0)
        return name

    return build


@pytest.fixture
def three(add: Callable[[], str]) -> str:
    """An adapter of three versions."""
    add()
    add()
    return add()


def champions(adapters: Registry, name: str) -> list[int | None]:
    return [one.target for one in adapters.history(name)]


def test_alias_moves(adapters: Registry, three: str) -> None:
    moved = adapters.set_alias(f"{three}/1", "blue")
    assert (moved.version, moved.aliases) == (1, ("blue",))
    adapters.set_alias(three, "blue", why="newest")
    versions = adapters.versions(name=three)
    assert [(v.version, v.aliases) for v in versions] == [(3, ("blue",)), (2, ()), (1, ())]
    assert [one.why for one in adapters.history(three)] == ["", "newest"]
    adapters.drop_alias(three, "blue")
    adapters.drop_alias(three, "blue")
    assert champions(adapters, three) == [1, 3, None]


def test_alias_that_mlflow_cannot_hold_is_refused(
    adapters: Registry, client: MlflowClient, three: str
) -> None:
    with pytest.raises(RefError, match="reserved"):
        adapters.set_alias(three, "latest")
    with pytest.raises(RefError, match=f"Write {three}/1"):
        move_alias(client, f"{three}/1@step-40", "blue", why="")
    with pytest.raises(AdapterNotFoundError):
        adapters.set_alias(f"{three}/9", "blue")


def test_move_on_what_is_no_longer_so_is_a_conflict(
    adapters: Registry, client: MlflowClient, three: str
) -> None:
    for version in (1, 2):
        adapters.set_alias(f"{three}/{version}", "champion")
    with pytest.raises(ConflictError):
        move_alias(client, three, "champion", why="", expected=1)
    made = move_alias(client, three, "champion", why="", expected=2)
    assert made is not None
    assert (made.source, made.target) == (2, 3)


def test_rollback_goes_back_and_further_back(adapters: Registry, three: str) -> None:
    for version in (1, 2, 3):
        adapters.set_alias(f"{three}/{version}", "champion")
    back = [adapters.rollback(three, why="an incident") for _ in range(2)]
    assert [(one.source, one.target) for one in back] == [(3, 2), (2, 1)]
    assert all(one.is_rollback for one in back)
    assert adapters.get(f"{three}@champion").version == 1
    with pytest.raises(AdapterNotFoundError, match="no earlier version to go back to"):
        adapters.rollback(three)
    assert champions(adapters, three) == [1, 2, 3, 2, 1]


def test_rollback_after_going_forward_again(adapters: Registry, three: str) -> None:
    for version in (1, 2):
        adapters.set_alias(f"{three}/{version}", "champion")
    adapters.rollback(three)
    adapters.set_alias(f"{three}/3", "champion")
    assert adapters.rollback(three).target == 1


def test_rollback_passes_over_what_is_retired_or_deleted(
    adapters: Registry, client: MlflowClient, add: Callable[[], str], three: str
) -> None:
    add()
    for version in (1, 2, 3, 4):
        adapters.set_alias(f"{three}/{version}", "champion")
    adapters.retire(f"{three}/3", "broken")
    client.delete_model_version(three, "2")
    assert adapters.rollback(three).target == 1


def test_rollback_of_an_alias_that_was_dropped(adapters: Registry, three: str) -> None:
    adapters.set_alias(f"{three}/2", "champion")
    adapters.drop_alias(three, "champion")
    assert adapters.rollback(three).target == 2


def test_rollback_of_what_never_was(adapters: Registry, three: str) -> None:
    for unknown in (three, "nothing-of-the-kind"):
        with pytest.raises(AdapterNotFoundError):
            adapters.rollback(unknown)
    assert adapters.versions(name="nothing-of-the-kind") == []


def test_two_rollbacks_at_once_go_back_once_or_one_is_told(adapters: Registry, three: str) -> None:
    for version in (1, 2, 3):
        adapters.set_alias(f"{three}/{version}", "champion")
    start, outcomes = threading.Barrier(2), []

    def run() -> None:
        start.wait()
        try:
            outcomes.append(adapters.rollback(three).target)
        except ConflictError:
            outcomes.append(None)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one for one in outcomes if one is not None]
    assert champions(adapters, three) == [1, 2, 3, *sorted(made, reverse=True)]
    assert 2 in made


def test_retired_version_loses_its_aliases_and_gets_none(adapters: Registry, three: str) -> None:
    adapters.set_alias(f"{three}/2", "challenger")
    retired = adapters.retire(f"{three}/2", "leaks names")
    assert retired.aliases == ()
    assert retired.retired.startswith("leaks names (")
    listed = adapters.versions(name=three)
    assert [bool(version.retired) for version in listed] == [False, True, False]
    last = adapters.history(three)[-1]
    assert (last.target, last.why) == (None, f"{three}/2 was retired: leaks names")
    with pytest.raises(RetiredError, match="leaks names"):
        adapters.set_alias(f"{three}/2", "blue")
    back = adapters.unretire(f"{three}/2")
    assert (back.retired, back.aliases) == ("", ())
    assert adapters.set_alias(back.ref, "blue").aliases == ("blue",)
    assert adapters.unretire(back.ref).retired == ""


def test_champion_is_not_retired(adapters: Registry, three: str) -> None:
    adapters.set_alias(f"{three}/1", "champion")
    with pytest.raises(RetiredError, match="roll back first"):
        adapters.retire(f"{three}@champion", "broken")
    assert adapters.get(f"{three}/1").retired == ""


def test_nothing_is_retired_without_a_reason(adapters: Registry, three: str) -> None:
    with pytest.raises(RetiredError, match="Say why"):
        adapters.retire(f"{three}/1", " ")


def test_state_that_somebody_set_by_hand_counts(
    adapters: Registry, client: MlflowClient, three: str
) -> None:
    client.set_model_version_tag(three, "1", "lorchestra.retired", "bad data")
    assert adapters.get(f"{three}/1").retired == "bad data"
