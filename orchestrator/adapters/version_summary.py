"""One version in short: whether it is the champion and why, then the facts that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.wording import format_metric, one_line
from registry import AdapterVersion, AliasMove
from registry.versions.aliases import CHALLENGER, CHAMPION


def render_version_summary(
    version: AdapterVersion, moves: Sequence[AliasMove], evaluations: int
) -> Group:
    """The verdict on a version, about ten facts, and the command that shows the rest.

    Args:
        version: The version.
        moves: Moves of all aliases of the adapter, the oldest first.
        evaluations: Number of the version's evaluations.
    """
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(version):
        table.add_row(name, Text(one_line(value)))  # as Text: brackets are no markup here
    count = f"{evaluations} evaluation{'' if evaluations == 1 else 's'}"
    rest = f"All records and {count}: lorchestra adapters show {version.ref} --all"
    return Group(render_verdict(version, moves), Text(), table, Text(), Text(rest, style="dim"))


def render_verdict(version: AdapterVersion, moves: Sequence[AliasMove]) -> Text:
    """The verdict in bold."""
    return Text(one_line(describe_verdict(version, moves)), style="bold")


def describe_verdict(version: AdapterVersion, moves: Sequence[AliasMove]) -> str:
    """Whether a version is the champion, and why, in one sentence.

    Args:
        version: The version.
        moves: Moves of all aliases of the adapter, the oldest first.
    """
    ref, done = version.ref, [move for move in moves if move.is_done]
    came = _last(done, CHAMPION, version.version)
    if CHAMPION in version.aliases:
        return f"{ref} is the champion" + (
            "." if came is None else f"; it became champion {_when_and_why(came)}"
        )
    if version.retired:
        return f"{ref} is not the champion, because it is retired: {version.retired}"
    refused = _last(done, CHALLENGER, version.version)
    if refused is not None and (came is None or refused.number > came.number):
        return f"{ref} is not the champion; the gate refused it {_when_and_why(refused)}"
    if came is not None:
        left = next(one for one in done if one.alias == CHAMPION and one.number > came.number)
        heir = "nothing" if left.target is None else f"{version.name}/{left.target}"
        return f"{ref} is not the champion any more; {heir} replaced it {_when_and_why(left)}"
    return (
        f"{ref} is not the champion, because it was not put to the gate: "
        f"lorchestra adapters promote {ref}"
    )


def _last(moves: Sequence[AliasMove], alias: str, target: int) -> AliasMove | None:
    """The last move of an alias to a version."""
    found = [move for move in moves if (move.alias, move.target) == (alias, target)]
    return found[-1] if found else None


def _when_and_why(move: AliasMove) -> str:
    back = "by a rollback " if move.is_rollback else ""
    why = f": {move.why}" if move.why else ", without a reason given"
    return f"{back}on {move.at.astimezone():%Y-%m-%d} ({move.who}){why}"


def _facts(version: AdapterVersion) -> Iterator[tuple[str, str]]:
    """Facts that the version has, by name."""
    tags = version.tags
    yield "aliases", ", ".join(version.aliases) or "none"
    yield "base", " ".join(filter(None, (tags.get("base.model"), tags.get("quantization"))))
    yield "serving form", version.form
    for measure in ("loss", "accuracy"):
        values = _values(version, measure)
        if values:
            yield measure, values
    lora = (("rank", "lora.rank"), ("alpha", "lora.alpha"), ("targets", "lora.targets"))
    yield "LoRA", ", ".join(f"{name} {tags[tag]}" for name, tag in lora if tag in tags)
    training = (("steps", "steps"), ("seed", "seed"))
    rate = tags.get("optim.learning_rate")
    told = [] if rate is None else [f"learning rate {_short(rate)}"]
    told += [f"{name} {tags[tag]}" for name, tag in training if tag in tags]
    yield "training", ", ".join(told)
    if version.checkpoints:
        yield "kept steps", ", ".join(map(str, version.checkpoints))
    if "lorchestra.trial" in tags:
        sweep = tags.get("lorchestra.sweep", "unknown")
        yield "found by", f"trial {tags['lorchestra.trial']} of sweep {sweep}"
    yield "registered", f"{version.created_at.astimezone():%Y-%m-%d %H:%M}"
    yield "MLflow run", version.run_id or "none"


def _short(number: str) -> str:
    """A number with four digits; a tag that somebody changed to other text, as it is."""
    try:
        return f"{float(number):.4g}"
    except ValueError:
        return number


def _values(version: AdapterVersion, measure: str) -> str:
    """A measure on test rows and on validation rows, as far as recorded."""
    rows = {"test": f"test_{measure}", "validation": f"eval_{measure}"}
    return ", ".join(
        f"{format_metric(version.metrics[name])} on {split} rows"
        for split, name in rows.items()
        if name in version.metrics
    )
