"""What holds for the whole repository: tests beside code, small modules, a frozen surface."""

import ast
import importlib
import pickle
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import orchestrator
import registry

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "trainables", "registry")
MAX_LINES = 460
ONE_FILE = {"registry.flavor": 600}
"""Lines allowed to what has to be one file: every version carries it as its code."""

COVERED_BY = {
    "orchestrator.commands.browsing": "tests/orchestrator/test_cli.py",
    "orchestrator.commands.reading": "tests/orchestrator/test_cli.py",
    "orchestrator.cluster.driver_log": "tests/orchestrator/cluster/test_following.py",
    "orchestrator.cluster.looking": "tests/orchestrator/cluster/test_following.py",
    "orchestrator.cluster.state": "tests/orchestrator/cluster/test_following.py",
    "orchestrator.cluster.templates": "tests/orchestrator/cluster/test_rendering.py",
    "orchestrator.commands.submitting": "tests/orchestrator/cluster/test_submitting.py",
    "orchestrator.commands.running": "tests/orchestrator/test_cli.py",
    "orchestrator.commands.steering": "tests/orchestrator/test_cli.py",
    "orchestrator.__init__": "tests/test_architecture.py",
    "registry.__init__": "tests/registry/test_surface.py",
    "orchestrator.errors": "tests/orchestrator/journal/test_log.py",
    "trainables.errors": "tests/trainables/rows/test_data.py",
    "registry.errors": "tests/registry/versions/test_refs.py",
    "orchestrator.capacity.earlier": "tests/orchestrator/capacity/test_calibrated.py",
    "orchestrator.pages.hosts": "tests/orchestrator/pages/test_page.py",
    "orchestrator.capacity.groups": "tests/orchestrator/capacity/test_outlook.py",
    "orchestrator.hosts.broker": "tests/orchestrator/hosts/test_pool.py",
    "orchestrator.adapters.as_json": "tests/orchestrator/adapters/test_commands.py",
    "orchestrator.adapters.shrinking": "tests/orchestrator/adapters/test_evaluating.py",
    "orchestrator.metrics": "tests/orchestrator/report/test_report.py",
    "orchestrator.journal.events": "tests/orchestrator/journal/test_codec.py",
    "orchestrator.journal.paths": "tests/orchestrator/finals/test_held_out.py",
    "orchestrator.finals.telling": "tests/orchestrator/finals/test_held_out.py",
    "orchestrator.live.diary": "tests/orchestrator/live/test_display.py",
    "orchestrator.live.frame": "tests/orchestrator/live/test_display.py",
    "orchestrator.sweepfile.describing": "tests/orchestrator/spec/test_fields.py",
    "orchestrator.sweepfile.schema": "tests/orchestrator/spec/test_fields.py",
    "orchestrator.sweepfile.bounds": "tests/orchestrator/sweepfile/test_reading.py",
    "orchestrator.sweepfile.loader": "tests/orchestrator/sweepfile/test_reading.py",
    "orchestrator.report.leaderboard": "tests/orchestrator/report/test_report.py",
    "orchestrator.report.measurements": "tests/orchestrator/report/test_report.py",
    "orchestrator.resources.reach": "tests/orchestrator/hosts/test_fleet.py",
    "orchestrator.spec.hosts_section": "tests/orchestrator/hosts/test_placement.py",
    "orchestrator.hosts.members": "tests/orchestrator/hosts/test_seats.py",
    "orchestrator.preflight.commands": "tests/orchestrator/preflight/test_checking.py",
    "orchestrator.preflight.continuing": "tests/orchestrator/test_resuming.py",
    "orchestrator.preflight.places": "tests/orchestrator/preflight/test_checking.py",
    "orchestrator.preflight.prepared": "tests/orchestrator/preflight/test_checking.py",
    "orchestrator.pages.coordinates": "tests/orchestrator/pages/test_page.py",
    "orchestrator.pages.files": "tests/orchestrator/pages/test_page.py",
    "orchestrator.pages.provenance": "tests/orchestrator/pages/test_page.py",
    "orchestrator.pages.trial_charts": "tests/orchestrator/pages/test_page.py",
    "orchestrator.report.plots": "tests/orchestrator/report/test_report.py",
    "orchestrator.journal.replica": "tests/orchestrator/journal/test_sweep_storage.py",
    "orchestrator.report.summary": "tests/orchestrator/report/test_report.py",
    "orchestrator.supervision": "tests/orchestrator/test_tuning.py",
    "trainables.__init__": "tests/trainables/test_engine.py",
    "trainables.packing.pack": "tests/trainables/packing/test_batches.py",
    "trainables.training.probe": "tests/trainables/training/test_equality.py",
    "trainables.packing.rope": "tests/trainables/training/test_equality.py",
    "trainables.files.arranging": "tests/trainables/files/test_layouts.py",
    "trainables.files.bad_rows": "tests/trainables/rows/test_splits.py",
    "trainables.claims": "tests/trainables/test_spec.py",
    "trainables.training.thrift": "tests/trainables/training/test_checkpointing.py",
    "trainables.optim_spec": "tests/trainables/test_spec.py",
    "trainables.memory_settings": "tests/orchestrator/spec/test_settings.py",
    "trainables.rows.epochs": "tests/trainables/rows/test_data.py",
    "trainables.base.hub": "tests/orchestrator/journal/test_pins.py",
    "trainables.files.formats": "tests/trainables/rows/test_data.py",
    "trainables.packing.kernels": "tests/trainables/packing/test_head.py",
    "trainables.rows.lengths": "tests/trainables/rows/test_data.py",
    "trainables.packing.lora": "tests/trainables/test_engine.py",
    "trainables.memory.activations": "tests/trainables/memory/test_forecast.py",
    "trainables.memory.adapter_bytes": "tests/trainables/memory/test_forecast.py",
    "trainables.memory.stored_bytes": "tests/trainables/memory/test_published.py",
    "trainables.training.memory": "tests/trainables/hosts/test_worker.py",
    "trainables.memory.loss_bytes": "tests/trainables/memory/test_forecast.py",
    "trainables.packing.checkpoints": "tests/trainables/training/test_equality.py",
    "trainables.training.foresight": "tests/trainables/training/test_checkpointing.py",
    "trainables.training.packed_model": "tests/trainables/training/test_equality.py",
    "trainables.training.pages": "tests/trainables/training/test_optim.py",
    "trainables.base.layers": "tests/trainables/base/test_base_summary.py",
    "trainables.base.targets": "tests/trainables/test_engine.py",
    "trainables.base.origin": "tests/trainables/base/test_loading.py",
    "trainables.training.state": "tests/trainables/test_engine.py",
    "trainables.hosts.orders": "tests/trainables/hosts/test_host.py",
    "trainables.hosts.tasks": "tests/trainables/hosts/test_host.py",
    "trainables.hosts.objects": "tests/trainables/hosts/test_storage.py",
    "registry.evaluations.comparison": "tests/registry/evaluations/test_comparing.py",
    "registry.bundles.card_usage": "tests/registry/bundles/test_card.py",
    "registry.evaluations.gate": "tests/registry/evaluations/test_promotion.py",
    "registry.tracking.experiments": "tests/registry/tracking/test_tracker.py",
    "registry.tracking.limits": "tests/registry/tracking/test_tracker.py",
    "registry.tracking.trial_news": "tests/registry/tracking/test_tracker.py",
    "registry.versions.entries": "tests/registry/versions/test_ledger.py",
    "trainables.chat.asking": "tests/trainables/chat/test_turns.py",
    "trainables.chat.ending": "tests/trainables/chat/test_turns.py",
    "trainables.chat.learned": "tests/trainables/rows/test_chat_summary.py",
    "trainables.files.messages": "tests/trainables/chat/test_turns.py",
    "trainables.base.stops": "tests/trainables/rows/test_chat_summary.py",
    "trainables.chat.templates": "tests/trainables/chat/test_turns.py",
    "trainables.evaluation.requantized": "tests/trainables/evaluation/test_kept.py",
}
"""Modules without a test file of their own name, and the one that tests them: directly, or through
the module that uses them."""


def modules():
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(found) > 40
    return found


def rooms(package):
    """Folders of a package, by name."""
    found = {path.parent.name: path for path in (ROOT / package).glob("*/__init__.py")}
    assert len(found) >= 4
    return found


def own_test(module):
    *folders, name = module.split(".")
    return ROOT.joinpath("tests", *folders, f"test_{name}.py")


def is_room(module):
    """The module is the `__init__` of a room; a test below holds that it does nothing."""
    return module in {f"{one}.{room}.__init__" for one in PACKAGES for room in rooms(one)}


def imports_of(path):
    """Dotted names that a file imports, at the top or within a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_is_tested_where_its_name_says_or_the_map():
    missing = [
        module
        for module in modules()
        if not own_test(module).is_file() and module not in COVERED_BY and not is_room(module)
    ]
    assert missing == []


def test_the_map_names_modules_that_need_it_and_tests_that_use_them():
    found = modules()
    for module, test in COVERED_BY.items():
        assert module in found, f"{module} is gone"
        assert not own_test(module).is_file(), f"{module} has a test file of its own"
        direct = imports_of(ROOT / test)
        # A part that only one other module uses is tested through that one.
        through = set().union(*(imports_of(found[one]) for one in direct if one in found))
        name = module.removesuffix(".__init__")
        assert any(f"{one}.".startswith(f"{name}.") for one in direct | through), (module, test)


def test_no_module_outgrows_one_sitting():
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    too_long = {
        module: lines
        for module, lines in lengths.items()
        if lines > ONE_FILE.get(module, MAX_LINES)
    }
    assert too_long == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_holds_five_to_fourteen_modules_and_the_package_itself_no_more(package):
    folders = [ROOT / package, *(path.parent for path in rooms(package).values())]
    sizes = {
        folder.name: sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in folders
    }
    assert sizes.pop(package) <= 14
    assert {name: size for name, size in sizes.items() if not 5 <= size <= 14} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_init_of_a_room_says_what_belongs_there_and_does_nothing(package):
    for name, path in rooms(package).items():
        tree = ast.parse(path.read_text())
        said = ast.get_docstring(tree)
        assert said is not None, name
        assert len(tree.body) == len(said.splitlines()) == 1, name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_has_no_rooms_and_its_tests_lie_in_a_folder_of_its_name(package):
    for name, path in rooms(package).items():
        assert list(path.parent.glob("*/*.py")) == [], name
    folders = {path.parent.name for path in (ROOT / "tests" / package).glob("*/test_*.py")}
    assert folders == set(rooms(package))


def test_no_modules_import_each_other_not_even_for_their_types():
    found = modules()
    needs = {
        module: [name for name in imports_of(path) if name in found]
        for module, path in found.items()
    }
    assert sum(map(len, needs.values())) > 300
    TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_the_public_surface_is_what_it_was():
    assert orchestrator.__all__ == [
        "BestAdapter", "BudgetSpec", "ExitSpec", "FinalsSpec", "HostsSpec", "ObjectiveSpec",
        "OpenedSweep", "RegisterSpec", "ScheduleSpec", "SearchSpec", "SweepError",
        "SweepFailedError", "SweepReport", "SweepSpec", "SweepSpecError", "SweepStorageError",
        "open_sweep", "run_sweep",
    ]  # fmt: skip
    assert registry.__all__ == [
        "AdapterNotFoundError", "AdapterRef", "AdapterVersion", "AliasMove", "Comparison",
        "ConflictError", "Evaluation", "IntegrityError", "PromotionDecision", "PromotionRule",
        "RefError", "Registry", "RegistryError", "Tracker", "TrackingError", "tracking_uri_for",
    ]  # fmt: skip


@pytest.mark.parametrize("package", [orchestrator, registry], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_no_other_is_made_up(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_a_sweep_in_python_needs_no_module_of_the_orchestrator_by_name():
    sections = {
        name
        for hint in get_type_hints(orchestrator.SweepSpec).values()
        for kind in (get_args(hint) or (hint,))
        if getattr(kind, "__module__", "").startswith("orchestrator.")
        for name in [kind.__name__]
    }
    assert len(sections) == 8
    assert sections <= set(orchestrator.__all__)


def errors_of(package):
    home = importlib.import_module(f"{package}.errors")
    return [
        each
        for each in vars(home).values()
        if isinstance(each, type)
        and issubclass(each, Exception)
        and each.__module__ == home.__name__
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_errors_cross_processes_and_have_one_base(package):
    kinds = errors_of(package)
    assert len(kinds) >= 4
    bases = [kind for kind in kinds if kind.__bases__ == (Exception,)]
    assert len(bases) == 1
    for kind in kinds:
        assert issubclass(kind, bases[0])
        again = pickle.loads(pickle.dumps(kind("field: got 1; allowed: 2. Use 2.")))
        assert type(again) is kind
        assert str(again) == "field: got 1; allowed: 2. Use 2."


# Written in pieces, so that this file is not what it looks for.
_MACHINE = "|".join(
    [rf"(?<![\w.~-])/{folder}/" for folder in ("w" + "ork", "ro" + "ot", "ho" + r"me/\w+")]
    + [
        r"[\w-]+\." + suffix
        for suffix in ("inter" + "nal\\b", "cor" + "p\\b", "lo" + "cal\\b(?=:)")
    ]
    + ["index" + r"-url\b", "arti" + "factory", "tru" + "sted-host"]
)


def test_no_text_in_the_repository_knows_the_machine_it_was_written_on():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.fail("the tests run in a checkout: git ls-files did not work")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    texts = {}
    for path in files:
        try:
            texts[path.relative_to(ROOT)] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or a file that is being removed
    assert len(texts) > 100
    found = [
        f"{path}: {match[0]}"
        for path, text in texts.items()
        for match in re.finditer(_MACHINE, text)
    ]
    assert found == []
