"""Evidence, gate and ledger on a real server with PostgreSQL, where processes do race."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import registry
from registry.connection import connect
from registry.errors import ConflictError
from registry.ledger import ensure_model
from registry.moves import move, settle

pytestmark = pytest.mark.server


@pytest.fixture
def client(as_admin: str) -> MlflowClient:
    connected = connect(as_admin)
    connected.search_registered_models(max_results=1)  # loads MLflow's stores before threads do
    return connected


def at_once(run: Callable[[int], Any], count: int) -> list[Any]:
    start = threading.Barrier(count)

    def begin(number: int) -> Any:
        start.wait()
        return run(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_a_candidate_goes_through_the_gate_and_back(
    as_admin: str, client: MlflowClient, name: str, new_bundle: Callable[..., Path],
    new_document: Callable[..., dict[str, Any]],
) -> None:  # fmt: skip
    rule = registry.PromotionRule()
    for seed, losses in ((1, [1.0, 2.0, 3.0] * 9), (2, [0.5, 1.5, 2.5] * 9)):
        version = registry.register(new_bundle(seed), name, tracking_uri=as_admin, card="# Card")
        document = new_document(losses, adapter=version.digest)
        run_id = registry.record_evaluation(version.ref, document, tracking_uri=as_admin)
        assert registry.record_evaluation(version.ref, document, tracking_uri=as_admin) == run_id
        assert registry.promote(version.ref, rule, tracking_uri=as_admin).promoted
    (found,) = registry.list_evaluations(f"{name}/2", tracking_uri=as_admin)
    assert list(found.examples["loss_sum"]) == losses
    (brief,) = registry.list_evaluations(name, tracking_uri=as_admin, with_examples=False)
    assert brief.measures == found.measures
    shown = {one.key: one.value for one in client.get_logged_model(version.model_id).metrics}
    assert shown["loss"] == found.measures["loss"].value
    assert registry.rollback(name, why="an incident", tracking_uri=as_admin).target == 1
    assert registry.retire(f"{name}/2", "leaks", tracking_uri=as_admin).retired
    assert not registry.promote(f"{name}/2", rule, tracking_uri=as_admin).promoted
    moves = registry.history(name, tracking_uri=as_admin)
    assert [(one.source, one.target) for one in moves] == [(None, 1), (1, 2), (2, 1)]


def test_racing_moves_are_one_chain(client: MlflowClient, name: str) -> None:
    ensure_model(client, name)
    for _ in range(3):
        client.create_model_version(name, "s3://nowhere/at-all", await_creation_for=0)

    def race(number: int) -> list[int]:
        won = []
        for _ in range(3):
            expected = settle(client, name).last_number("champion")
            try:
                made = move(client, name, "champion", 1 + number % 3, "", expected=expected)
            except ConflictError:
                continue
            won += [] if made is None else [made.number]
        return won

    won = [number for each in at_once(race, 4) for number in each]
    moves = settle(client, name).moves
    assert [one.number for one in moves] == sorted(won)
    assert [one.source for one in moves] == [None, *(one.target for one in moves[:-1])]
    assert settle(client, name).aliases == {"champion": moves[-1].target}


# Filters of warnings are the process's, and one thread's are undone by another.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_at_once_is_one_version_and_one_ledger(
    as_admin: str, client: MlflowClient, name: str, new_bundle: Callable[..., Path]
) -> None:
    bundle = new_bundle(seed=4343)
    found = at_once(lambda _: registry.register(bundle, name, tracking_uri=as_admin), 3)
    assert len({version.version for version in found}) == 1
    assert len(registry.list_adapters(tracking_uri=as_admin, name=name)) == 1
    experiment = client.get_experiment_by_name("lorchestra-adapters").experiment_id
    ledgers = client.search_runs([experiment], f"tags.`lorchestra.adapter` = '{name}'")
    assert len(ledgers) == 1
