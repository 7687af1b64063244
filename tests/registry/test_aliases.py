"""Aliases go where they are sent and back; versions out of use have none."""

import threading
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from registry.adapters import DIGEST_TAG, get, list_adapters
from registry.aliases import drop_alias, move_alias, retire, rollback, set_alias, unretire
from registry.errors import AdapterNotFoundError, ConflictError, RefError, RetiredError
from registry.ledger import ensure_model, history


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


def champions(tracking_uri: str, name: str) -> list[int | None]:
    return [one.target for one in history(name, tracking_uri=tracking_uri)]


def test_alias_moves(tracking_uri: str, three: str) -> None:
    moved = set_alias(f"{three}/1", "blue", tracking_uri=tracking_uri)
    assert (moved.version, moved.aliases) == (1, ("blue",))
    set_alias(three, "blue", tracking_uri=tracking_uri, why="newest")
    versions = list_adapters(tracking_uri=tracking_uri, name=three)
    assert [(v.version, v.aliases) for v in versions] == [(3, ("blue",)), (2, ()), (1, ())]
    assert [one.why for one in history(three, tracking_uri=tracking_uri)] == ["", "newest"]
    drop_alias(three, "blue", tracking_uri=tracking_uri)
    drop_alias(three, "blue", tracking_uri=tracking_uri)
    assert champions(tracking_uri, three) == [1, 3, None]


def test_alias_that_mlflow_cannot_hold_is_refused(tracking_uri: str, three: str) -> None:
    with pytest.raises(RefError, match="reserved"):
        set_alias(three, "latest", tracking_uri=tracking_uri)
    with pytest.raises(RefError, match=f"Write {three}/1"):
        move_alias(f"{three}/1@step-40", "blue", why="", tracking_uri=tracking_uri)
    with pytest.raises(AdapterNotFoundError):
        set_alias(f"{three}/9", "blue", tracking_uri=tracking_uri)


def test_move_on_what_is_no_longer_so_is_a_conflict(tracking_uri: str, three: str) -> None:
    for version in (1, 2):
        set_alias(f"{three}/{version}", "champion", tracking_uri=tracking_uri)
    with pytest.raises(ConflictError):
        move_alias(three, "champion", why="", tracking_uri=tracking_uri, expected=1)
    made = move_alias(three, "champion", why="", tracking_uri=tracking_uri, expected=2)
    assert made is not None
    assert (made.source, made.target) == (2, 3)


def test_rollback_goes_back_and_further_back(tracking_uri: str, three: str) -> None:
    for version in (1, 2, 3):
        set_alias(f"{three}/{version}", "champion", tracking_uri=tracking_uri)
    back = [rollback(three, why="an incident", tracking_uri=tracking_uri) for _ in range(2)]
    assert [(one.source, one.target) for one in back] == [(3, 2), (2, 1)]
    assert all(one.is_rollback for one in back)
    assert get(f"{three}@champion", tracking_uri=tracking_uri).version == 1
    with pytest.raises(AdapterNotFoundError, match="no earlier version to go back to"):
        rollback(three, tracking_uri=tracking_uri)
    assert champions(tracking_uri, three) == [1, 2, 3, 2, 1]


def test_rollback_after_going_forward_again(tracking_uri: str, three: str) -> None:
    for version in (1, 2):
        set_alias(f"{three}/{version}", "champion", tracking_uri=tracking_uri)
    rollback(three, tracking_uri=tracking_uri)
    set_alias(f"{three}/3", "champion", tracking_uri=tracking_uri)
    assert rollback(three, tracking_uri=tracking_uri).target == 1


def test_rollback_passes_over_what_is_retired_or_deleted(
    tracking_uri: str, client: MlflowClient, add: Callable[[], str], three: str
) -> None:
    add()
    for version in (1, 2, 3, 4):
        set_alias(f"{three}/{version}", "champion", tracking_uri=tracking_uri)
    retire(f"{three}/3", "broken", tracking_uri=tracking_uri)
    client.delete_model_version(three, "2")
    assert rollback(three, tracking_uri=tracking_uri).target == 1


def test_rollback_of_an_alias_that_was_dropped(tracking_uri: str, three: str) -> None:
    set_alias(f"{three}/2", "champion", tracking_uri=tracking_uri)
    drop_alias(three, "champion", tracking_uri=tracking_uri)
    assert rollback(three, tracking_uri=tracking_uri).target == 2


def test_rollback_of_what_never_was(tracking_uri: str, three: str) -> None:
    for unknown in (three, "nothing-of-the-kind"):
        with pytest.raises(AdapterNotFoundError):
            rollback(unknown, tracking_uri=tracking_uri)
    assert list_adapters(tracking_uri=tracking_uri, name="nothing-of-the-kind") == []


def test_two_rollbacks_at_once_go_back_once_or_one_is_told(tracking_uri: str, three: str) -> None:
    for version in (1, 2, 3):
        set_alias(f"{three}/{version}", "champion", tracking_uri=tracking_uri)
    start, outcomes = threading.Barrier(2), []

    def run() -> None:
        start.wait()
        try:
            outcomes.append(rollback(three, tracking_uri=tracking_uri).target)
        except ConflictError:
            outcomes.append(None)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one for one in outcomes if one is not None]
    assert champions(tracking_uri, three) == [1, 2, 3, *sorted(made, reverse=True)]
    assert 2 in made


def test_retired_version_loses_its_aliases_and_gets_none(tracking_uri: str, three: str) -> None:
    set_alias(f"{three}/2", "challenger", tracking_uri=tracking_uri)
    retired = retire(f"{three}/2", "leaks names", tracking_uri=tracking_uri)
    assert retired.aliases == ()
    assert retired.retired.startswith("leaks names (")
    listed = list_adapters(tracking_uri=tracking_uri, name=three)
    assert [bool(version.retired) for version in listed] == [False, True, False]
    last = history(three, tracking_uri=tracking_uri)[-1]
    assert (last.target, last.why) == (None, f"{three}/2 was retired: leaks names")
    with pytest.raises(RetiredError, match="leaks names"):
        set_alias(f"{three}/2", "blue", tracking_uri=tracking_uri)
    back = unretire(f"{three}/2", tracking_uri=tracking_uri)
    assert (back.retired, back.aliases) == ("", ())
    assert set_alias(back.ref, "blue", tracking_uri=tracking_uri).aliases == ("blue",)
    assert unretire(back.ref, tracking_uri=tracking_uri).retired == ""


def test_champion_is_not_retired(tracking_uri: str, three: str) -> None:
    set_alias(f"{three}/1", "champion", tracking_uri=tracking_uri)
    with pytest.raises(RetiredError, match="roll back first"):
        retire(f"{three}@champion", "broken", tracking_uri=tracking_uri)
    assert get(f"{three}/1", tracking_uri=tracking_uri).retired == ""


def test_nothing_is_retired_without_a_reason(tracking_uri: str, three: str) -> None:
    with pytest.raises(RetiredError, match="Say why"):
        retire(f"{three}/1", " ", tracking_uri=tracking_uri)


def test_state_that_somebody_set_by_hand_counts(
    tracking_uri: str, client: MlflowClient, three: str
) -> None:
    client.set_model_version_tag(three, "1", "lorchestra.retired", "bad data")
    assert get(f"{three}/1", tracking_uri=tracking_uri).retired == "bad data"
