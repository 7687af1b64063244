"""Writes docs/events.md, the reference of the event log and of the gauges, from their code.

python docs/make_events.py
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.journal.codec import LOG_FORMAT  # noqa: E402
from orchestrator.journal.events import EVENT_TYPES  # noqa: E402
from orchestrator.outcome import Outcome  # noqa: E402
from orchestrator.report.gauges import GAUGES  # noqa: E402

PAGE = ROOT / "docs" / "events.md"

_HEAD = """\
# Events and gauges

<!-- python docs/make_events.py writes this page; edit the docstrings of what it imports -->

The event log is for programs that want to know what happened, the [gauges](#gauges) for those that
watch what happens now.

`events.jsonl` in a sweep's folder is the record of the sweep: resuming, `status`, the
report and MLflow's runs are made from it. Each line is one JSON object, in the order of what
happened; lines are only appended. Each line has these fields:

| field | type | meaning |
|---|---|---|
| `event` | text | kind of the event, one of those below |
| `at` | number | time, in seconds since the epoch |
| `format` | integer | format of the log, {format} in this version |

A field with its default is left out. A reader skips kinds and fields that it does not know: a
newer version adds some, and no version changes the meaning of one. In Python,
`orchestrator.journal.log.read_events` gives the lines as objects.

```sh
tail -f runs/NAME/events.jsonl                                            # follow a sweep
grep '"event":"trial_ended"' runs/NAME/events.jsonl | grep -c '"stopped"'  # trials stopped early
```

The report's metrics of a trial that broke (`is_fault`) are stand-ins, not measurements.
"""

_GAUGES = """\
## Gauges

While a sweep runs, its driver sets these gauges of Ray every few seconds. Ray exports them for
Prometheus on the driver's node, with `ray_` before the name, if its extra `ray[default]` is
installed. Each has the label `sweep`. `k8s/grafana/lorchestra.json` is a dashboard for Grafana:
import the file and choose your Prometheus.

| gauge | labels | meaning |
|---|---|---|"""

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n {6,}.*)*)", re.MULTILINE)


def build_page() -> str:
    """The page as text."""
    sections = [_HEAD.format(format=LOG_FORMAT)]
    sections += [_section(name, kind) for name, kind in EVENT_TYPES.items()]
    sections += [_GAUGES, *(_gauge(name, *one) for name, one in GAUGES.items())]
    return "\n".join(sections) + "\n"


def _gauge(name: str, about: str, labels: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{label}`" for label in labels)
    return f"| `ray_{name}` | {shown} | {about} |"


def _section(name: str, kind: type[Any]) -> str:
    about = inspect.getdoc(kind) or ""
    first = about.partition("\n")[0]
    meanings = {field: " ".join(text.split()) for field, text in _ATTRIBUTE.findall(about)}
    fields = dataclasses.fields(kind)
    lines = [f"## `{name}`", "", first, ""]
    if fields:
        hints = get_type_hints(kind, include_extras=True)
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{one.name}` | {_type(hints[one.name])} | {_default(one)} | {meanings[one.name]} |"
            for one in fields
        ]
        lines.append("")
    return "\n".join(lines)


def _type(kind: Any) -> str:
    """A type in words of JSON."""
    arguments = get_args(kind)
    match get_origin(kind):
        case None:
            text = _NAMES[kind]
        case origin if origin is Annotated:
            text = {int: "count", float: "amount"}[arguments[0]]
        case origin if origin is Literal:
            text = " or ".join(f"`{value}`" for value in arguments)
        case origin if origin in (Union, types.UnionType):
            text = " or ".join(_type(one) for one in arguments)
        case origin if origin is Sequence:
            text = f"list of {_type(arguments[0])}"
        case _:
            text = f"object of {_type(arguments[1])}"
    return text


_NAMES = {
    str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null",
    Any: "any", Outcome: ", ".join(f"`{one.value}`" for one in Outcome),
}  # fmt: skip


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return ""
    if field.default is None:
        return "null"
    return {"": "empty", (): "empty", True: "true", False: "false"}[field.default]


if __name__ == "__main__":
    PAGE.write_text(build_page())
