"""Searches in MLflow: all pages of a listing, and runs by the exact values of their tags."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

PAGE_SIZE = 1000
"""Entries per request: the most that MLflow gives."""


def all_pages(search: Callable[..., Any]) -> Iterator[Any]:
    """All entries of a paged listing, in its order.

    Args:
        search: One of MLflow's searches: gives the page that `page_token` names, or the first.
    """
    token: str | None = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find_runs(
    client: MlflowClient,
    experiment_ids: Sequence[str],
    tags: Mapping[str, str],
    *,
    also: str = "",
    newest_first: bool = False,
    page_size: int = PAGE_SIZE,
) -> Iterator[Run]:
    """Runs with exactly these values of tags, in the order of their start times.

    Args:
        client: Of the server.
        experiment_ids: Where to search.
        tags: Any text is allowed as a value.
        also: Another condition in MLflow's filter language.
        newest_first: The order; the oldest come first otherwise.
        page_size: Runs per request.
    """
    wanted = " and ".join([*(_condition(*tag) for tag in tags.items()), *([also] if also else [])])
    order = "DESC" if newest_first else "ASC"
    found = all_pages(
        functools.partial(
            client.search_runs,
            list(experiment_ids),
            wanted,
            max_results=page_size,
            order_by=[f"attributes.start_time {order}", f"attributes.run_id {order}"],
        )
    )
    for run in found:
        if tags.items() <= run.data.tags.items():
            yield run


def _condition(tag: str, value: str) -> str:
    """A filter for runs with a tag's value; runs with similar values can pass too.

    MLflow's filters have two kinds of quotes, and no escape for a quote within quotes of the same
    kind (mlflow/utils/search_utils.py, `_strip_quotes`). A backslash before the last quote hides
    that quote from sqlparse. If neither kind of quotes is possible, the filter is a pattern.
    """
    for quote in ("'", '"'):
        if quote not in value and not value.endswith("\\"):
            return f"tags.`{tag}` = {quote}{value}{quote}"
    pattern = value.replace("'", "_").replace("\\", "_")
    return f"tags.`{tag}` LIKE '{pattern}'"
