"""What README and docs/ say is there: pages, commands, sweep files, Python names, files."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from orchestrator import SweepSpec, SweepSpecError, cli, run_sweep
from orchestrator.journal.events import EVENT_TYPES
from orchestrator.outcome import Outcome
from orchestrator.preflight.data_report import inspect_inputs
from registry import Registry
from trainables.spec import BaseSpec, LoraSpec, OptimSpec

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_WORDS = 1500

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_TREE_NAME = re.compile(r"[\w.-]+(?:\.py|/)(?=[\s;,]|$)")
_PATH = re.compile(
    r"(?:orchestrator|trainables|registry|tests|docs|benchmarks|sweeps)/[\w./-]+\.\w+"
)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in _FENCE.findall(page.read_text()) if kind == language]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def all_blocks(language: str) -> list[Any]:
    """The blocks of all pages as pytest's parameters, by page and number."""
    found = [
        pytest.param(body, id=f"{page.name}-{number}")
        for page in PAGES
        for number, body in enumerate(blocks(page, language), 1)
    ]
    assert found, language
    return found


# --------------------------------------------------------------------------------- size and links


def test_the_readme_is_short() -> None:
    assert 500 < len(README.read_text().split()) <= MAX_README_WORDS


def anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    plain = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line) for line in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


def is_broken(page: Path, link: str) -> bool:
    name, _, part = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return True
    return bool(part) and (target.suffix != ".md" or part not in anchors(target))


def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading() -> None:
    links = [(page, link) for page in PAGES for link in _LINK.findall(prose(page))]
    inner = [(page, link) for page, link in links if "://" not in link]
    assert len(inner) > 25
    assert any("#" in link for _, link in inner)
    assert [(page.name, link) for page, link in inner if is_broken(page, link)] == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `word`, two\n")
    assert not is_broken(page, "#one-word-two")
    assert not is_broken(page, "page.md")
    assert is_broken(page, "#three")
    assert is_broken(page, "other.md")


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(README))}
    assert len(PAGES) > 10
    assert [page.name for page in PAGES[1:] if page not in linked] == []


def test_the_page_of_events_is_written_from_their_classes() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    make_events = importlib.import_module("make_events")
    page = make_events.build_page()
    assert page.count("\n## `") == len(EVENT_TYPES)
    said = "docs/events.md is not what `python docs/make_events.py` writes: run it"
    assert (ROOT / "docs" / "events.md").read_text() == page, said


# --------------------------------------------------------------------------------------- commands


def commands() -> Iterator[tuple[str, str]]:
    """Every `lorchestra …` line of a block or within a sentence, its comment left out."""
    for page in PAGES:
        lines = [line for body in blocks(page, "sh") for line in body.splitlines()]
        for text in [*lines, *_INLINE.findall(prose(page))]:
            if text.startswith("lorchestra "):
                yield page.name, text.partition(" #")[0].strip()


def complaint_about(command: str) -> str:
    """What argparse says of a command; empty when it takes it."""
    said = io.StringIO()
    words = shlex.split(command)[1:]
    with contextlib.redirect_stderr(said):
        try:
            cli._build_parser().parse_args(words)
        except SystemExit:
            return said.getvalue().splitlines()[-1]
    return ""


def test_every_command_exists_with_its_options() -> None:
    found = list(commands())
    assert len(found) > 30
    assert [(*one, said) for one in found if (said := complaint_about(one[1]))] == []


def test_a_command_that_is_not_there_is_found() -> None:
    assert "invalid choice" in complaint_about("lorchestra adapters polish NAME/3")
    assert "--fast" in complaint_about("lorchestra run sweep.yaml --fast")


def test_every_command_is_documented() -> None:
    documented = {tuple(shlex.split(text)[1:3]) for _, text in commands()}
    verbs = {words[1] for words in documented if words[0] == "adapters"}
    (top,) = [a for a in cli._build_parser()._actions if isinstance(a.choices, dict)]
    (below,) = [a for a in top.choices["adapters"]._actions if isinstance(a.choices, dict)]
    assert {words[0] for words in documented} == set(top.choices)
    assert verbs == set(below.choices)


def test_make_targets_and_scripts_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)(?=[`\s])", text))
    assert {"demo", "test"} <= targets
    assert [one for one in targets if f"\n{one}:" not in makefile] == []


# ----------------------------------------------------------------------------------- sweep files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the rows that sweep files of the pages name."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    return tmp_path


def parse(folder: Path, text: str) -> SweepSpec:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return SweepSpec.from_yaml(path)


@pytest.mark.parametrize("text", all_blocks("yaml"))
def test_every_sweep_file_can_be_run(folder: Path, text: str) -> None:
    assert parse(folder, text).budget.trials >= 1


def test_the_mistake_in_the_readme_is_reported_so(folder: Path) -> None:
    (text,) = [one for one in _INLINE.findall(prose(README)) if one.startswith("space.")]
    (sweep,) = blocks(README, "yaml")
    with pytest.raises(SweepSpecError) as caught:
        parse(folder, sweep.replace("lora.rank: {choice", "lora.rnk: {choice"))
    pattern = ".*".join(re.escape(part) for part in text.split("…"))
    assert re.fullmatch(pattern, str(caught.value).splitlines()[0])


def test_the_demo_is_as_large_as_the_readme_says() -> None:
    demo = yaml.safe_load((ROOT / "sweeps" / "quickstart.yaml").read_text())
    told = re.search(r"runs (\d+) trials .* over (\d+) settings", prose(README))
    assert told is not None
    assert [int(one) for one in told.groups()] == [demo["budget"]["trials"], len(demo["space"])]


def test_each_word_has_one_meaning_and_its_place_in_the_alphabet() -> None:
    text = (ROOT / "docs" / "words.md").read_text()
    words = re.findall(r"^\| ([a-z ]+) \|", text, re.MULTILINE)[1:]
    assert len(words) > 40
    assert words == sorted(set(words))


def test_every_line_of_the_table_of_distributions_can_be_written(folder: Path) -> None:
    table = prose(ROOT / "docs" / "search-space.md").partition("A setting that")[0]
    cells = re.findall(r"^\| `([^`]+)` \|", table.partition("| in `space` |")[2], re.MULTILINE)
    assert len(cells) >= 6
    for cell in cells:
        space = {"lora.rank": {"choice": [4, 8, 16]}} | yaml.safe_load(cell)
        values = {
            "name": "table",
            "base": {"model": "owner/name"},
            "data": {"train": "rows.jsonl"},
            "optim": {"steps": 40},
            "eval": {"every": 10},
            "space": space,
            "budget": {"trials": 2},
        }
        parse(folder, yaml.safe_dump(values))


def test_the_lists_of_settings_algorithms_and_outcomes_are_whole() -> None:
    hints = get_type_hints(SweepSpec)
    data = hints["data"]
    columns, _ = get_args(get_type_hints(data)["columns"])
    expected = {
        "data.md": [
            *(one.name for kind in (data, columns) for one in dataclasses.fields(kind)),
            *(set(get_args(get_type_hints(data)["format"])) - {"auto"}),
        ],
        "search-space.md": [
            *(one.name for kind in (BaseSpec, LoraSpec) for one in dataclasses.fields(kind)),
            *(one.name for one in dataclasses.fields(OptimSpec) if one.name != "steps"),
            *get_args(get_type_hints(hints["search"])["algorithm"]),
            *(f"search.{one.name}" for one in dataclasses.fields(hints["search"])),
        ],
        "outcomes-and-budget.md": [
            *Outcome,
            *get_args(get_type_hints(hints["schedule"])["algorithm"]),
            *(one.name for one in dataclasses.fields(hints["budget"]) if one.name != "trials"),
        ],
        "evaluation.md": [
            *get_args(get_args(get_type_hints(hints["finals"])["forms"])[0]),
            *(one.name for one in dataclasses.fields(hints["finals"]) if one.name != "confidence"),
        ],
    }
    for page, names in expected.items():
        text = (ROOT / "docs" / page).read_text()
        assert [one for one in names if not re.search(rf"\b{re.escape(one)}\b", text)] == []


def test_what_run_says_of_the_demos_rows_is_on_the_page(tiny_base: Path) -> None:
    demo = SweepSpec.from_yaml(ROOT / "sweeps" / "quickstart.yaml")
    base = dataclasses.replace(demo.base, model=str(tiny_base))
    said = inspect_inputs(dataclasses.replace(demo, base=base)).lines
    shown, *_ = blocks(ROOT / "docs" / "data.md", "")
    # The other lines count tokens, which each base makes of its own.
    assert shown.splitlines()[:2] == list(said[:2])


# ------------------------------------------------------------------------------------------ Python


def test_every_method_of_the_registry_is_documented() -> None:
    text = (ROOT / "docs" / "registry.md").read_text()
    methods = [name for name in vars(Registry) if not name.startswith("_")]
    assert len(methods) > 15
    assert [name for name in methods if f"`{name}(" not in text] == []


def names_of(imported: ast.stmt) -> Iterator[tuple[str, Any]]:
    """Each name that an import binds, with what it stands for."""
    if isinstance(imported, ast.Import):
        for alias in imported.names:
            yield alias.asname or alias.name, importlib.import_module(alias.name)
    if isinstance(imported, ast.ImportFrom):
        module = importlib.import_module(str(imported.module))
        for alias in imported.names:
            assert hasattr(module, alias.name), f"{imported.module} has no {alias.name}"
            yield alias.asname or alias.name, getattr(module, alias.name)


def kinds_of(tree: ast.Module, known: dict[str, Any]) -> Iterator[tuple[str, type]]:
    """Variables that hold an object of a known class, or what a known function gives."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            made = known.get(getattr(node.value.func, "id", ""))
            if made is run_sweep:
                made = get_type_hints(run_sweep, localns=vars(importlib.import_module("pandas")))
                made = made["return"]
            if isinstance(made, type) and isinstance(node.targets[0], ast.Name):
                yield node.targets[0].id, made


def takes(function: Any, call: ast.Call, *, is_method: bool) -> bool:
    """Whether a function has the parameters that a call gives it."""
    values = [None] * (len(call.args) + is_method)
    words = {word.arg: None for word in call.keywords if word.arg}
    try:
        inspect.signature(function).bind(*values, **words)
    except TypeError:
        return False
    return True


def mistakes_in(text: str) -> list[str]:
    """Attributes and calls of a block that the code does not have."""
    tree = ast.parse(text)
    known = dict(pair for node in tree.body for pair in names_of(node))
    assert known
    kinds = dict(kinds_of(tree, known))
    return [
        ast.unparse(node)
        for node in ast.walk(tree)
        if lacks_attribute(node, kinds, known) or is_called_wrongly(node, kinds, known)
    ]


def lacks_attribute(node: ast.AST, kinds: dict[str, type], known: dict[str, Any]) -> bool:
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        return False
    owner = kinds.get(node.value.id, known.get(node.value.id))
    there = {*dir(owner), *getattr(owner, "__dataclass_fields__", ())}
    return owner is not None and node.attr not in there


def is_called_wrongly(node: ast.AST, kinds: dict[str, type], known: dict[str, Any]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name) and called.id in known:
        return not takes(known[called.id], node, is_method=False)
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        method = getattr(kinds.get(called.value.id), called.attr, None)
        return method is not None and not takes(method, node, is_method=True)
    return False


@pytest.mark.parametrize("text", all_blocks("python"))
def test_every_python_block_uses_names_and_parameters_that_exist(text: str) -> None:
    assert mistakes_in(text) == []


def test_a_wrong_name_or_parameter_in_a_python_block_is_found() -> None:
    head = "from registry import Registry\nadapters = Registry('sqlite:///x')\n"
    assert mistakes_in(f"{head}adapters.versions()") == []
    assert mistakes_in(f"{head}adapters.polish('a/1')") == ["adapters.polish"]
    assert mistakes_in(f"{head}adapters.rollback('a', whyy='x')") != []
    with pytest.raises(AssertionError, match="has no Registrar"):
        mistakes_in("from registry import Registrar")


# ------------------------------------------------------------------------------------------- files


def tree_entries() -> list[str]:
    """Paths that the tree in the README names; an indented line is below the last folder."""
    (tree,) = [body for body in blocks(README, "") if body.startswith("orchestrator/")]
    found, folder = [], ""
    for line in tree.splitlines():
        names = _TREE_NAME.findall(line)
        if not line.startswith(" "):
            folder = names[0]
            found.append(folder)
            names = names[1:]
        found += [folder + name for name in names]
    return found


def test_every_file_in_the_tree_exists_and_every_room_is_in_it() -> None:
    entries = tree_entries()
    assert len(entries) > 30
    assert [entry for entry in entries if not (ROOT / entry).exists()] == []
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {f"{name.partition('/')[0]}/" for name in listed if "/" in name}
    rooms = {
        f"{Path(name).parent}/"
        for name in listed
        if re.fullmatch(r"(orchestrator|trainables|registry)/\w+/__init__\.py", name)
    }
    assert sorted((top | rooms) - set(entries) - {".ci/"}) == []


def test_every_path_in_a_sentence_exists() -> None:
    found = {
        (page.name, path)
        for page in PAGES
        for text in _INLINE.findall(prose(page))
        for path in _PATH.findall(text)
    }
    assert len(found) > 8
    assert [one for one in found if not (ROOT / one[1]).exists()] == []


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        name
        for page in PAGES
        for text in _INLINE.findall(prose(page))
        for name in re.findall(r"(?<!\.)\btest_\w+(?!\w|\.py)", text)
    }
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 5
    assert [name for name in named if f"def {name}(" not in tests] == []
