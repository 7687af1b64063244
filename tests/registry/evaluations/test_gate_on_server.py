"""Evidence, gate and ledger on a real server with PostgreSQL, where processes do race."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

import registry
from registry import Registry
from registry.errors import ConflictError
from registry.tracking.connection import connect
from registry.versions.ledger import ensure_model
from registry.versions.moves import move, settle
from tests.support.bundles import new_document

pytestmark = pytest.mark.server


@pytest.fixture
def adapters(as_admin: str) -> Registry:
    return Registry(as_admin)


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
    adapters: Registry, client: MlflowClient, name: str, new_bundle: Callable[..., Path],
    ) -> None:  # fmt: skip
    rule = registry.PromotionRule()
    for seed, losses in ((1, [1.0, 2.0, 3.0] * 9), (2, [0.5, 1.5, 2.5] * 9)):
        version = adapters.register(new_bundle(seed), name, card="# Card")
        document = new_document(losses, adapter=version.digest)
        run_id = adapters.record_evaluation(version.ref, document)
        assert adapters.record_evaluation(version.ref, document) == run_id
        assert adapters.promote(version.ref, rule).promoted
    (found,) = adapters.evaluations(f"{name}/2")
    assert list(found.examples["loss_sum"]) == losses
    (brief,) = adapters.evaluations(name, with_examples=False)
    assert brief.measures == found.measures
    shown = {one.key: one.value for one in client.get_logged_model(version.model_id).metrics}
    assert shown["loss"] == found.measures["loss"].value
    assert adapters.rollback(name, why="an incident").target == 1
    assert adapters.retire(f"{name}/2", "leaks").retired
    assert not adapters.promote(f"{name}/2", rule).promoted
    moves = adapters.history(name)
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
    adapters: Registry, client: MlflowClient, name: str, new_bundle: Callable[..., Path]
) -> None:
    bundle = new_bundle(seed=4343)
    found = at_once(lambda _: adapters.register(bundle, name), 3)
    assert len({version.version for version in found}) == 1
    assert len(adapters.versions(name=name)) == 1
    experiment = client.get_experiment_by_name("lorchestra-adapters").experiment_id
    ledgers = client.search_runs([experiment], f"tags.`lorchestra.adapter` = '{name}'")
    assert len(ledgers) == 1
