"""The commands `lorchestra adapters …`: show, evaluate and change versions in the registry."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from orchestrator.wording import format_size, refusal

if TYPE_CHECKING:
    from orchestrator.adapters.evaluating import Evaluator
    from registry import AdapterVersion, Registry

DEFAULT_RUNS = Path("runs")
_REF = "NAME, NAME/VERSION or NAME@ALIAS"

Command = Callable[[argparse.Namespace], int]


def add_adapter_commands(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add a parser for each command."""
    _add_json(_add(verbs, "list", _list, "list versions, newest first", name="?"))
    show = _add(verbs, "show", _show, "say what one version is, and whether it is champion",
                ref=None)  # fmt: skip
    show.add_argument("--all", action="store_true", help="all its records and evaluations")
    _add_json(show)
    pull = _add(
        verbs, "pull", _pull, "copy the files of one version into a folder, verified", ref=None
    )
    pull.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    compare = _add(verbs, "compare", _compare, "compare versions side by side", refs="+")
    _add_json(compare)
    compare.add_argument("--html", type=Path, metavar="FILE", help="also write a page with plots")

    evaluate = _add(
        verbs, "evaluate", _evaluate, "evaluate versions on the rows of a file", refs="+"
    )
    _add_evaluation_options(evaluate, "rows to evaluate on")
    evaluate.add_argument("--forms", type=_words, default=(), metavar="FORM,…",
                          help="serving forms (default: the form of the version)")  # fmt: skip
    evaluate.add_argument("--tasks", type=_words, default=(), metavar="TASK,…",
                          help="tasks of lm-eval, instead of --data")  # fmt: skip
    evaluate.add_argument(
        "--task-files", type=Path, metavar="FOLDER", help="folder with definitions of tasks"
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="examples of a task, at most")

    shrink = _add(verbs, "shrink", _shrink, "register the lowest rank that is as good", ref=None)
    _add_evaluation_options(shrink, "rows to evaluate on", is_required=True)
    shrink.add_argument("--ranks", type=_numbers, required=True, metavar="N,…",
                        help="ranks to try")  # fmt: skip
    shrink.add_argument("--metric", default="loss", help="measure to compare")
    shrink.add_argument("--tolerance", type=float, default=0.01, metavar="PART",
                        help="how much worse the measure may be (default: 0.01)")  # fmt: skip

    promote = _add(
        verbs,
        "promote",
        _promote,
        "make a version champion if it is better than the champion",
        ref=None,
    )
    _add_evaluation_options(promote, "rows for both versions, if not evaluated on the same rows")
    promote.add_argument("--metric", default="loss", help="measure to compare")
    promote.add_argument(
        "--form", help="serving form (default: the form recorded with the version)"
    )
    promote.add_argument("--min-improvement", type=float, default=0.0, metavar="X",
                         help="required improvement over the champion")  # fmt: skip
    promote.add_argument("--confidence", type=float, default=0.95, metavar="LEVEL",
                         help="level of the interval of the difference")  # fmt: skip
    promote.add_argument("--force", action="store_true", help="without a comparison")
    _add_why(promote, is_required=False)

    _add_why(_add(verbs, "retire", _retire, "retire a version", ref=None))
    _add_why(_add(verbs, "unretire", _unretire, "bring a retired version back", ref=None), False)
    rollback = _add(
        verbs, "rollback", _rollback, "point an alias back at its previous version", name=None
    )
    rollback.add_argument("--alias", default="champion", help="alias to move")
    _add_why(rollback)
    history = _add(verbs, "history", _history, "list moves of aliases: who, when, why", name=None)
    _add_json(history)
    clean = _add(verbs, "clean", _clean, "remove models without a version")
    clean.add_argument("--yes", action="store_true", help="remove; without this, only list")


def add_runs_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of the registry."""
    parser.add_argument(
        "--runs",
        type=Path,
        default=DEFAULT_RUNS,
        help="folder with mlflow.db (default: runs); $MLFLOW_TRACKING_URI overrides this",
    )


def tracking_uri_of(options: argparse.Namespace) -> str:
    """The tracking URI of a command; creates no database.

    Raises:
        TrackingError: The folder has no database.
    """
    from registry import TrackingError, tracking_uri_for

    uri, _ = tracking_uri_for(options.runs)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise TrackingError(
            refusal(
                "--runs",
                str(options.runs),
                "the parent folder of sweeps",
                "Run a sweep first, or set MLFLOW_TRACKING_URI.",
                flaw="which has no mlflow.db",
            )
        )
    return uri


def _registry(options: argparse.Namespace) -> Registry:
    from registry import Registry

    return Registry(tracking_uri_of(options))


def _add(
    verbs: argparse._SubParsersAction[Any],
    verb: str,
    command: Command,
    about: str,
    **arguments: str | None,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(verb, help=about)
    for name, count in arguments.items():
        shown = "NAME" if name == "name" else "REF"
        about = "an adapter" if name == "name" else _REF
        parser.add_argument(name, nargs=count, metavar=shown, help=about)
    add_runs_option(parser)
    parser.set_defaults(command=command)
    return parser


def _add_evaluation_options(
    parser: argparse.ArgumentParser, about: str, *, is_required: bool = False
) -> None:
    parser.add_argument("--data", type=Path, metavar="FILE", help=about, required=is_required)
    parser.add_argument("--base-model", metavar="PATH", help="path of the base on this machine")
    parser.add_argument("--max-new-tokens", type=int, default=0, metavar="N",
                        help="tokens of a greedy completion (default: 0, none)")  # fmt: skip
    parser.add_argument("--pattern", metavar="REGEX", help="compare the text that it finds")
    parser.add_argument("--choices", type=_words, default=(), metavar="A,B,…",
                        help="compare the first of these answers in a completion")  # fmt: skip
    parser.add_argument("--metrics", type=_words, default=(), metavar="MODULE:FUNCTION,…",
                        help="functions of completions and references")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, metavar="N",
                        help="rows per forward pass")  # fmt: skip
    parser.add_argument("--max-rows", type=int, metavar="N", help="evaluate at most N rows")
    parser.add_argument("--skip-cut", action="store_true",
                        help="skip rows that are too long for an answer")  # fmt: skip


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_why(parser: argparse.ArgumentParser, is_required: bool = True) -> None:
    parser.add_argument("--why", required=is_required, default="", metavar="TEXT",
                        help="kept in the history")  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))


# ------------------------------------------------------------------------------------- reading


def _list(options: argparse.Namespace) -> int:
    from orchestrator.adapters.as_json import to_json
    from orchestrator.adapters.terminal import list_width, render_versions

    adapters = _registry(options)
    versions = adapters.versions(options.name)
    if options.name and not versions:
        adapters.get(options.name)  # refuses the name, with the names that there are
    if options.json:
        print(to_json(versions))
        return 0
    # A terminal that is too narrow for the names wraps lines itself: a name can still be copied.
    Console(width=list_width(versions, Console().width)).print(render_versions(versions))
    return 0


def _show(options: argparse.Namespace) -> int:
    from orchestrator.adapters.as_json import to_json, version_fields
    from orchestrator.adapters.terminal import render_version
    from orchestrator.adapters.version_summary import render_verdict, render_version_summary

    adapters = _registry(options)
    version = adapters.get(options.ref)
    evaluations = adapters.evaluations(options.ref, with_examples=options.all or options.json)
    moves = adapters.history(version.name)
    console = Console()
    if options.json:
        print(to_json({**version_fields(version), "evaluations": evaluations, "moves": moves}))
    elif options.all:
        console.print(render_verdict(version, moves), "", sep="\n")
        console.print(render_version(version, evaluations, moves))
    else:
        console.print(render_version_summary(version, moves, len(evaluations)))
    return 0


def _pull(options: argparse.Namespace) -> int:
    print(_registry(options).pull(options.ref, options.to))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from orchestrator.adapters.as_json import to_json
    from orchestrator.adapters.comparison_page import build_comparison_page, render_comparison
    from trainables.whole import replace_file

    comparison = _registry(options).compare(options.refs)
    if options.json:
        print(to_json(comparison))
    else:
        Console().print(render_comparison(comparison))
    if options.html is not None:
        options.html.parent.mkdir(parents=True, exist_ok=True)
        replace_file(options.html, build_comparison_page(comparison).encode())
        if not options.json:
            print(options.html)
    return 0


def _history(options: argparse.Namespace) -> int:
    from orchestrator.adapters.as_json import to_json
    from orchestrator.adapters.terminal import render_challenges, render_moves

    adapters = _registry(options)
    moves, challenges = adapters.history(options.name), adapters.challenges(options.name)
    if not moves:
        adapters.get(options.name)  # refuses a name that there is not
    if options.json:
        print(to_json({"moves": moves, "challenges": challenges}))
        return 0
    Console().print(render_moves(moves))
    if challenges:
        Console().print("", render_challenges(challenges), sep="\n")
    return 0


# ---------------------------------------------------------------------------------- evaluating


def _evaluate(options: argparse.Namespace) -> int:
    from orchestrator.spec.complaint import require

    require(
        (options.data is None) != (not options.tasks),
        "--data",
        None if options.data is None else str(options.data),
        "a file of rows, or --tasks",
        "Give one of the two.",
    )
    versions = _versions(options, options.refs)
    if options.tasks:
        return _run_tasks(options, versions)
    failures = 0
    with _evaluator(options, options.forms) as evaluator:
        for result in evaluator.evaluate(versions):
            failures += bool(result.error)
            measures = (result.document or {}).get("measures", {})
            values = (
                f"{name} {'-' if one['value'] is None else format(one['value'], '.4g')}"
                for name, one in measures.items()
            )
            print(f"{result.key} {result.form}: {result.error or ', '.join(values)}")
    return 1 if failures else 0


def _run_tasks(options: argparse.Namespace, versions: Sequence[AdapterVersion]) -> int:
    from orchestrator.adapters.evaluating import HarnessRun, require_forms
    from orchestrator.hosts.cluster import ray_for_evaluation
    from orchestrator.quiet import hush_noisy_loggers

    require_forms(options.forms)
    hush_noisy_loggers()
    with ray_for_evaluation() as shape:
        for form in options.forms or (None,):
            order = HarnessRun(
                tasks=options.tasks,
                include_path=options.task_files and options.task_files.absolute(),
                limit=options.limit,
                form=form,
                base_model=options.base_model,
            )
            for ref, results in order.run(versions, _registry(options), shape):
                for task, found in results["tasks"].items():
                    values = (
                        f"{name} {one['value']:.4g}" for name, one in found["metrics"].items()
                    )
                    print(f"{ref} {results['form']} {task}: {', '.join(values)}")
    return 0


def _shrink(options: argparse.Namespace) -> int:
    from orchestrator.adapters.shrinking import shrink_version
    from orchestrator.adapters.terminal import render_shrunk

    (version,) = _versions(options, [options.ref])
    with _evaluator(options, ()) as evaluator:
        shrunk = shrink_version(
            version,
            options.ranks,
            evaluator,
            measure=options.metric,
            tolerance=options.tolerance,
        )
    Console().print(render_shrunk(version, shrunk, options.metric))
    return 0 if shrunk.version is not None else 1


def _promote(options: argparse.Namespace) -> int:
    from registry import PromotionRule

    adapters = _registry(options)
    version = adapters.get_whole(options.ref)
    rule = PromotionRule(
        metric=options.metric,
        form=options.form or version.form,
        min_improvement=options.min_improvement,
        confidence=options.confidence,
    )

    def reevaluate(versions: Sequence[AdapterVersion]) -> None:
        with _evaluator(options, (rule.form,)) as evaluator:
            for result in evaluator.evaluate(versions):
                print(f"{result.key} {result.form}: {result.error or 'evaluated'}")

    decision = adapters.promote(
        version.ref,
        rule,
        why=options.why,
        reevaluate=None if options.data is None else reevaluate,
        force=options.force,
    )
    print(f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}")
    return 0 if decision.promoted else 1


@contextmanager
def _evaluator(options: argparse.Namespace, forms: tuple[str, ...]) -> Iterator[Evaluator]:
    """An evaluator on a running Ray; options are checked before, because Ray takes seconds."""
    from orchestrator.adapters.evaluating import Evaluator, Rows, require_forms
    from orchestrator.hosts.cluster import ray_for_evaluation
    from orchestrator.quiet import hush_noisy_loggers
    from trainables.errors import SpecError
    from trainables.evaluation_spec import EvaluationSpec

    try:
        how = EvaluationSpec(
            max_new_tokens=options.max_new_tokens,
            pattern=options.pattern,
            choices=options.choices,
            metrics=options.metrics,
            batch_size=options.batch_size,
            max_rows=options.max_rows,
            skip_cut=options.skip_cut,
        )
    except SpecError as error:
        # The message names a field, `evaluation.max_rows`; the user gave an option, `--max-rows`.
        text = re.sub(
            r"evaluation\.(\w+)", lambda name: f"--{name[1].replace('_', '-')}", str(error)
        )
        raise SpecError(text) from error
    require_forms(forms)
    rows = Rows.of_file(options.data)
    adapters = _registry(options)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hush_noisy_loggers()
    # bitsandbytes warns that it cannot download an optional kernel for CPUs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with ray_for_evaluation() as shape:
        yield Evaluator(
            rows=rows,
            how=how,
            adapters=adapters,
            shape=shape,
            forms=forms,
            base_model=options.base_model,
        )


def _versions(options: argparse.Namespace, refs: Sequence[str]) -> list[AdapterVersion]:
    adapters = _registry(options)
    return [adapters.get_whole(ref) for ref in refs]


# ------------------------------------------------------------------------------------- changing


def _retire(options: argparse.Namespace) -> int:
    version = _registry(options).retire(options.ref, options.why)
    print(f"{version.ref} is retired")
    return 0


def _unretire(options: argparse.Namespace) -> int:
    version = _registry(options).unretire(options.ref)
    print(f"{version.ref} is in use again")
    return 0


def _rollback(options: argparse.Namespace) -> int:
    move = _registry(options).rollback(options.name, alias=options.alias, why=options.why)
    print(f"{options.name}@{options.alias} is version {move.target} again")
    return 0


def _clean(options: argparse.Namespace) -> int:
    adapters = _registry(options)
    found = adapters.find_garbage()
    for each in found:
        size = format_size(each.bytes)
        print(f"{each.model_id}  {each.changed_at.astimezone():%Y-%m-%d %H:%M}  {size:>12}")
    if not found:
        print("nothing to remove: every model belongs to a version")
    elif options.yes:
        print(f"removed {len(adapters.collect_garbage(found))}")
    else:
        print("nothing was removed; add --yes to remove these")
    return 0
