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
    """Runs that have these tags with exactly these values, by the time of their start.

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
    """A filter that lets a tag's value through, and perhaps others that look alike.

    MLflow's filters have two kinds of quotes and no way to write a quote within quotes of its own
    kind (mlflow/utils/search_utils.py, `_strip_quotes`); sqlparse takes a backslash before the
    last quote for part of the text. Where neither kind will do, a pattern stands for the value.
    """
    for quote in ("'", '"'):
        if quote not in value and not value.endswith("\\"):
            return f"tags.`{tag}` = {quote}{value}{quote}"
    pattern = value.replace("'", "_").replace("\\", "_")
    return f"tags.`{tag}` LIKE '{pattern}'"
