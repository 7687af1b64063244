"""The public surface: every name is documented and annotated, its examples hold, the wheel has it.

`tests/test_architecture.py` holds which names there are.
"""

import doctest
import inspect
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import orchestrator
import registry
import trainables.spec

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "registry", "trainables")
SURFACE = [
    pytest.param(getattr(package, name), id=f"{package.__name__}.{name}")
    for package in (orchestrator, registry, trainables.spec)
    for name in package.__all__
]
EXAMPLES = {
    orchestrator.SweepSpec: "orchestrator.spec.sweep",
    registry.AdapterRef: "registry.versions.refs",
    registry.PromotionRule: "registry.evaluations.gate",
}
"""Names with examples that need no sweep; `tests/orchestrator/test_run.py` runs the others."""


def functions_of(kind):
    """A function itself; of a class its public methods and the getters of its properties."""
    if inspect.isfunction(kind):
        return [kind]
    found = []
    for name, member in vars(kind).items():
        member = getattr(member, "__func__", None) or getattr(member, "fget", None) or member
        if inspect.isfunction(member) and not name.startswith("_"):
            found.append(member)
    return found


@pytest.mark.parametrize("thing", [each for each in SURFACE if callable(each.values[0])])
def test_a_public_name_is_documented_and_annotated(thing):
    if not inspect.isclass(thing) and not inspect.isfunction(thing):
        return  # a Literal, which is its own documentation
    assert len(inspect.getdoc(thing) or "") > 20
    for function in functions_of(thing):
        assert len(inspect.getdoc(function) or "") > 10, function.__qualname__
        parameters = [
            one
            for one in inspect.signature(function).parameters.values()
            if one.name not in ("self", "cls")
        ]
        bare = [one.name for one in parameters if one.annotation is one.empty]
        assert bare == [], function.__qualname__
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_the_examples_of_a_docstring_hold(kind):
    names = vars(sys.modules[EXAMPLES[kind]])
    example = doctest.DocTestParser().get_doctest(kind.__doc__, dict(names), "x", None, None)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_dir_shows_names_that_are_imported_on_first_use():
    code = "import sys, {0}; assert set({0}.__all__) <= set(dir({0})); print('ray' in sys.modules)"
    for package in ("orchestrator", "registry"):
        call = [sys.executable, "-c", code.format(package)]
        said = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == "False"


def test_a_type_checker_that_finds_the_wheel_reads_its_annotations(tmp_path):
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
