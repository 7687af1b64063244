"""Memory of the hosts, forecast beside measured, and their seats."""

from __future__ import annotations

from orchestrator.journal.history import SweepHistory, describe_seats
from orchestrator.pages.markup import cell, note, number, table
from orchestrator.wording import format_size, one_line

_PARTS = {
    "base": "base",
    "adapters": "adapters",
    "optimizer": "optimizer",
    "passing": "longest pass",
}


def describe_hosts(history: SweepHistory) -> str:
    """A table of measurements and a sentence for each decision; empty without any.

    Of the measurements of the same group, seats and length of rows, the last is shown.
    """
    last = {(one.group, one.seats, one.train_tokens): one for one in history.hosts_measured}
    rows = []
    for one in last.values():
        pairs = [(one.forecast.get(name, 0.0), one.measured.get(name, 0.0)) for name in _PARTS] + [
            (sum(one.forecast.values()), sum(one.measured.values()))
        ]
        rows.append(
            [
                cell(one_line(one.group)),
                number(str(one.seats)),
                number(f"{one.train_tokens:,}"),
                *(
                    number(f"{format_size(forecast)} / {format_size(found)}")
                    for forecast, found in pairs
                ),
                number(f"{one.factor:.2f}"),
                number(format_size(one.capacity)),
            ]
        )
    heads: list[str | tuple[str, str]] = [
        "base",
        "seats",
        "tokens of a row",
        *_PARTS.values(),
        "sum",
        ("factor", "what later forecasts of a pass are multiplied by"),
        "device",
    ]
    latest = {event.group: event for _, event in history.seats_decided}
    seats = "".join(note(one_line(describe_seats(event)) + ".") for event in latest.values())
    measured = note("Forecast / measured bytes of tensors:") + table(heads, rows) if rows else ""
    return measured + seats
