"""Searching finds all pages, and runs by any text in a tag."""

import time
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from registry.tracking.connection import connect
from registry.tracking.search import find_runs

VALUES = {
    "plain": "sweep-7",
    "single-quote": "it's",
    "double-quote": 'the "best"',
    "both-quotes": """it's the "best\"""",
    "two-single-quotes": "it''s",
    "backslash-inside": "a\\b",
    "backslash-at-the-end": "C:\\runs\\",
    "backslash-before-a-quote": "a\\'b",
    "all-of-them": "\\'\"\\",
    "percent": "50%",
    "percent-and-both-quotes": "50% '\"",
    "underscore": "a_b",
    "unicode": "Größe – 数 🦙",
    "semicolon-and-comment": "a; b -- c /* d */",
    "a-filter": "x' or tags.other = 'y",
    "line-break": "a\nb",
    "empty": "",
    "backtick": "`a`",
}


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.server)])
def anywhere(request: pytest.FixtureRequest) -> MlflowClient:
    fixture = {"sqlite": "tracking_uri", "server": "as_admin"}[request.param]
    return connect(request.getfixturevalue(fixture))


@pytest.fixture
def new_experiment(name: str) -> Callable[[MlflowClient], str]:
    return lambda client: client.create_experiment(f"{name}-{time.time_ns()}")


def test_a_run_is_found_by_any_text_in_its_tags(
    anywhere: MlflowClient, new_experiment: Callable[[MlflowClient], str]
) -> None:
    experiment = new_experiment(anywhere)
    made = {
        label: anywhere.create_run(experiment, tags={"kind": "k'", "value": value}).info.run_id
        for label, value in VALUES.items()
    }
    found = {
        label: [
            run.info.run_id
            for run in find_runs(anywhere, [experiment], {"value": value, "kind": "k'"})
        ]
        for label, value in VALUES.items()
    }
    assert found == {label: [run_id] for label, run_id in made.items()}


@pytest.mark.parametrize(
    ("value", "alike"),
    [("'\"", '_"'), ("a\\", "a_"), ("'%\"", "'x\""), ("a'\"", "A'\"")],
    ids=["underscore", "backslash", "percent", "case"],
)
def test_a_pattern_lets_no_other_text_through(
    client: MlflowClient, new_experiment: Callable[[MlflowClient], str], value: str, alike: str
) -> None:
    experiment = new_experiment(client)
    client.create_run(experiment, tags={"value": alike})
    assert list(find_runs(client, [experiment], {"value": value})) == []


@pytest.mark.parametrize("newest_first", [False, True])
def test_all_pages_are_found_in_order(
    client: MlflowClient, new_experiment: Callable[[MlflowClient], str], newest_first: bool
) -> None:
    experiment = new_experiment(client)
    made = [
        client.create_run(experiment, start_time=1000 * (n + 1), tags={"t": "1"}).info.run_id
        for n in range(5)
    ]
    found = find_runs(
        client, [experiment], {"t": "1"}, newest_first=newest_first, page_size=2,
        also="attributes.start_time >= 2000",
    )  # fmt: skip
    expected = made[:0:-1] if newest_first else made[1:]
    assert [run.info.run_id for run in found] == expected
