"""Valid sweep files, and the message for each mistake."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.sweep import BudgetSpec, SweepSpec, parse_sweep
from trainables.spec import BaseSpec, DataSpec, OptimSpec

SWEEP: dict[str, Any] = {
    "name": "tiny-sweep",
    "seed": 7,
    "base": {"model": "owner/name"},
    "data": {"train": "data/rows.jsonl"},
    "lora": {"dropout": 0.0},
    "optim": {"steps": 80, "batch_size": 8},
    "eval": {"every": 10},
    "space": {
        "lora.rank": {"choice": [4, 8, 16]},
        "lora.alpha_per_rank": {"choice": [1, 2]},
        "optim.learning_rate": {"log_uniform": [3e-4, 5e-3]},
    },
    "search": {"algorithm": "tpe", "startup_trials": 4},
    "schedule": {"algorithm": "asha", "grace_steps": 20, "reduction_factor": 2},
    "budget": {"trials": 8},
    "register": {"top": 2},
}
MISSING = object()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    return tmp_path


def changed(path: str, value: Any) -> dict[str, Any]:
    """The sweep with one value set or removed; slashes separate the parts of the path."""
    sweep = copy.deepcopy(SWEEP)
    *parents, last = path.split("/")
    section = sweep
    for parent in parents:
        section = section.setdefault(parent, {})
    if value is MISSING:
        del section[last]
    else:
        section[last] = value
    return sweep


def test_sweep_file_becomes_a_spec_with_paths_beside_the_file(folder: Path) -> None:
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    spec = SweepSpec.from_yaml(folder / "sweep.yaml")
    assert spec.data.train == str(folder / "data" / "rows.jsonl")
    assert spec.base.model == "owner/name"
    assert spec.horizon == 80
    assert spec.register is not None
    assert spec.register.name == "tiny-sweep"
    assert spec.objective.mode == "min"


def test_plain_dict_takes_a_round_trip_through_json(folder: Path) -> None:
    spec = parse_sweep(changed("lora/targets", ["q_proj", "v_proj"]), folder)
    again = parse_sweep(json.loads(json.dumps(spec.to_dict())), Path("/nowhere"))
    assert again == spec
    assert again.digest == spec.digest


def test_number_that_yaml_reads_as_text_is_a_number(folder: Path) -> None:
    text = yaml.safe_dump(changed("optim/learning_rate", 1.0)).replace(": 1.0\n", ": 1e-4\n")
    assert yaml.safe_load(text)["optim"]["learning_rate"] == "1e-4"
    (folder / "sweep.yaml").write_text(text)
    assert SweepSpec.from_yaml(folder / "sweep.yaml").optim.learning_rate == 1e-4


def test_omitted_grace_is_a_quarter_of_the_horizon_in_whole_evaluations(folder: Path) -> None:
    assert parse_sweep(changed("schedule", {}), folder).schedule.grace_steps == 20
    sweep = changed("schedule", {}) | {"eval": {"every": 40}}
    assert parse_sweep(sweep, folder).schedule.grace_steps == 40


def test_sections_left_out_have_defaults(folder: Path) -> None:
    sweep = {key: SWEEP[key] for key in ("name", "base", "data")} | {
        "optim": {"steps": 20},
        "budget": {"trials": 1},
    }
    spec = parse_sweep(sweep, folder)
    assert spec.register is None
    assert spec.search_space.knobs == {}


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("optim/lerning_rate", 1, ["optim.lerning_rate", "did you mean learning_rate?"]),
        ("optim/lr", 1, ["optim.lr", "did you mean learning_rate?"]),
        ("bugdet", {}, ["bugdet", "Unknown key", "did you mean budget?"]),
        ("base/model", MISSING, ["base.model", "missing", "Add it."]),
        ("budget", MISSING, ["budget", "missing"]),
        ("optim/learning_rate", "fast", ["optim.learning_rate", "'fast'", "a number"]),
        ("optim/learning_rate", -1, ["optim.learning_rate", "-1", "> 0"]),
        ("optim/learning_rate", float("nan"), ["optim.learning_rate", "nan", "finite"]),
        ("optim/steps", 85, ["optim.steps", "85", "eval.every (10)", "80 or 90"]),
        ("optim/steps", 2.5, ["optim.steps", "2.5", "a whole number"]),
        ("lora", 3, ["lora", "a mapping", "key: value"]),
        ("lora/rank", 0, ["lora.rank", "0", "1 to 1024"]),
        ("lora/rank", True, ["lora.rank", "True", "give another value"]),
        ("lora/targets", "atention", ["lora.targets", "'atention'", "all-linear"]),
        ("lora/targets", 5, ["lora.targets", "5", "text or a list"]),
        ("name", "My Sweep", ["name", "'My Sweep'", "a-z", "Use my-sweep."]),
        ("name", "../up", ["name", "'../up'"]),
        ("name", 5, ["name", "5", "text"]),
        ("seed", -1, ["seed", "-1", "0 to"]),
        ("data/train", "data/none.jsonl", ["data.train", "none.jsonl", "existing file"]),
        ("data/validation", "none.csv", ["data.validation", "none.csv", "existing file"]),
        ("data/train", "", ["data.train", "''"]),
        ("base/model", "./nothing", ["base.model", "nothing", "existing"]),
        ("base/quantization", "nf5", ["base.quantization", "'nf5'", "nf4", "fp4"]),
        ("objective/metric", "loss", ["objective.metric", "'loss'", "eval_token_accuracy"]),
        ("objective/mode", "max", ["objective.mode", "'max'", "min for eval_loss"]),
        ("search/algorithm", "bayes", ["search.algorithm", "'bayes'", "'tpe'"]),
        ("search/algorithm", "grid", ["space.optim.learning_rate", "choice", "grid"]),
        ("schedule/grace_steps", 25, ["schedule.grace_steps", "25", "20 or 30"]),
        ("schedule/grace_steps", 5, ["schedule.grace_steps", "5", "Use 10."]),
        ("schedule/grace_steps", 90, ["schedule.grace_steps", "90", "optim.steps (80)"]),
        ("schedule/reduction_factor", 1.5, ["schedule.reduction_factor", "1.5", ">= 2"]),
        ("budget/trials", 0, ["budget.trials", "0", ">= 1"]),
        ("budget/wall_clock_s", 0, ["budget.wall_clock_s", "0", "> 0"]),
        ("hosts/seats", 0, ["hosts.seats", "0"]),
        ("register/top", 9, ["register.top", "9", "budget.trials (8)"]),
        ("register/top", 4, ["register.top", "4", "finals.top (3)", "set finals.top to 4"]),
        ("budget/trials", 1, ["register.top", "2", "budget.trials (1)", "allow more trials"]),
        ("search/algorithm", "cmaes", ["search.algorithm", "less than two ranges", "tpe"]),
        ("search/start", [{"lora.rank": 5}], ["search.start[0].lora.rank", "5", "4, 8, 16"]),
        ("search/start", [{}, {"lr": 5}], ["search.start[1].lr", "optim.learning_rate?"]),
        ("search/start", [{"lora.dropout": 0}], ["search.start[0].lora.dropout", "Remove it"]),
        ("search/start", [{"lora.rank": float("nan")}], ["search.start[0]", "finite"]),
        ("search/start", [5], ["search.start", "5"]),
        ("forbid", [{"lora.rank": 5}], ["forbid[0].lora.rank", "5", "4, 8, 16"]),
        ("forbid", [{}, 5], ["forbid", "5"]),
        ("forbid", {"lora.rank": 4}, ["forbid", "a list"]),
        ("space", {}, ["space", "at least one knob", "budget.trials to 1"]),
        ("space", [], ["space", "a mapping"]),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(
    folder: Path, path: str, value: Any, parts: list[str]
) -> None:
    with pytest.raises(SweepSpecError) as caught:
        parse_sweep(changed(path, value), folder)
    message = str(caught.value)
    assert message.startswith(parts[0])
    assert [part for part in parts if part not in message] == []
    assert "\n" not in message


ODD_VALUES = [None, "", "x", -1, 0, 2.5, 1e400, float("nan"), True, [], {}, [1], {"x": 1}, b"x"]


def test_odd_values_anywhere_give_this_one_error_or_work(folder: Path) -> None:
    paths = [
        *SWEEP,
        *(
            f"{key}/{name}"
            for key, value in SWEEP.items()
            if isinstance(value, dict)
            for name in value
        ),
        *(f"space/{knob}/{kind}" for knob, values in SWEEP["space"].items() for kind in values),
    ]
    assert len(paths) > 30
    refused = []
    for path, value in itertools.product(paths, ODD_VALUES):
        try:
            parse_sweep(changed(path, value), folder)
        except SweepSpecError as error:
            refused.append((path.partition("/")[0], str(error)))
    assert len(refused) > 300
    assert [each for each in refused if not each[1].startswith(each[0])] == []


def test_first_of_many_mistakes_is_told_and_the_others_counted(folder: Path) -> None:
    sweep = changed("optim/steps", "many") | {"hosts": {"seats": "two", "fresh": "maybe"}}
    with pytest.raises(SweepSpecError, match=r"^optim\.steps: .*\(And 2 more after this\.\)$"):
        parse_sweep(sweep, folder)


def build_in_python(**changes: Any) -> SweepSpec:
    values: dict[str, Any] = {
        "name": "in-python",
        "base": BaseSpec(model="owner/name"),
        "data": DataSpec(train=({"prompt": "a", "completion": "b"},)),
        "optim": OptimSpec(steps=40),
        "budget": BudgetSpec(trials=4),
        "space": {"lora.rank": {"choice": [4, 8]}},
    }
    return SweepSpec(**values | changes)


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"optim": OptimSpec(steps=41)}, "optim.steps"),
        ({"name": "In Python"}, "name"),
        ({"data": DataSpec(train="none.jsonl")}, "data.train"),
        ({"space": {"lora.rank": {"choice": [0]}}}, "space.lora.rank"),
        ({"space": {}}, "space"),
    ],
)
def test_spec_built_in_python_is_checked_alike(changes: dict[str, Any], start: str) -> None:
    with pytest.raises(SweepSpecError, match=f"^{start}: "):
        build_in_python(**changes)


def test_rows_in_memory_become_files(tmp_path: Path) -> None:
    spec = build_in_python()
    with pytest.raises(SweepSpecError, match=r"^data\.train: .*with_saved_rows"):
        spec.to_dict()
    saved = spec.with_saved_rows(tmp_path)
    assert isinstance(saved.data.train, str)
    lines = Path(saved.data.train).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"prompt": "a", "completion": "b"}]
    assert saved.digest == spec.with_saved_rows(tmp_path / "elsewhere").digest


def test_digest_outlives_a_larger_budget_and_a_moved_file(folder: Path, tmp_path: Path) -> None:
    spec = parse_sweep(SWEEP, folder)
    larger = dataclasses.replace(spec, budget=BudgetSpec(trials=80), register=None)
    assert larger.digest == spec.digest
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(str(spec.data.train)).read_bytes())
    assert parse_sweep(changed("data/train", str(moved)), folder).digest == spec.digest


def test_digest_sees_other_rows_and_other_settings(folder: Path) -> None:
    digests = {parse_sweep(SWEEP, folder).digest}
    digests.add(parse_sweep(changed("seed", 8), folder).digest)
    digests.add(parse_sweep(changed("space/lora.rank", {"choice": [4]}), folder).digest)
    (folder / "data" / "rows.jsonl").write_text('{"prompt": "a", "completion": "c"}\n')
    digests.add(parse_sweep(SWEEP, folder).digest)
    assert len(digests) == 4


FORMS: dict[str, Any] = {
    "lora.rank": {"choice": [4, 8, 16]},
    "lora.alpha": {"tied": "2 * lora.rank"},
    "lora.dropout": {"choice": [0.0, 0.1], "when": {"lora.rank": [8, 16]}},
    "lora.targets": ["v_proj", "q_proj"],
    "seed": {"int": [0, 2]},
    "optim.batch_size": 16,
}


def test_every_form_takes_a_round_trip_and_counts_in_the_digest(folder: Path) -> None:
    sweep = changed("space", FORMS) | {"forbid": [{"lora.rank": 16, "seed": [1, 2]}]}
    spec = parse_sweep(sweep, folder)
    again = parse_sweep(json.loads(json.dumps(spec.to_dict())), Path("/nowhere"))
    assert again == spec
    assert again.digest == spec.digest
    assert again.search_space == spec.search_space
    assert spec.search_space.size == (3 + 2 * 3 + 2 * 1)
    digests = {spec.digest, parse_sweep(sweep | {"forbid": []}, folder).digest}
    for name, written in (
        ("lora.alpha", {"tied": "3 * lora.rank"}),
        ("lora.dropout", {"choice": [0.0, 0.1], "when": {"lora.rank": 8}}),
        ("optim.batch_size", 8),
    ):
        digests.add(parse_sweep(sweep | {"space": FORMS | {name: written}}, folder).digest)
    assert len(digests) == 5


def test_constant_in_the_space_is_a_fixed_setting(folder: Path) -> None:
    constants = {"lora.targets": "mlp", "optim.batch_size": 16, "seed": 3}
    spec = parse_sweep(changed("space", SWEEP["space"] | constants), folder)
    assert (spec.lora.targets, spec.optim.batch_size, spec.seed) == ("mlp", 16, 3)
    assert list(spec.space) == list(SWEEP["space"])
    fixed = {
        "lora": SWEEP["lora"] | {"targets": "mlp"},
        "optim": SWEEP["optim"] | {"batch_size": 16},
        "seed": 3,
    }
    assert spec == parse_sweep(SWEEP | fixed, folder)


def test_space_of_constants_and_ties_has_nothing_to_search(folder: Path) -> None:
    space = {"lora.rank": 4, "lora.alpha": {"tied": "2 * lora.rank"}}
    with pytest.raises(SweepSpecError, match=r"^space: got .*at least one knob to search"):
        parse_sweep(changed("space", space), folder)
    one = changed("space", space) | {"budget": {"trials": 1}, "register": {}}
    assert list(parse_sweep(one, folder).search_space.configurations()) == [{}]


def test_grid_takes_every_form_of_listed_values(folder: Path) -> None:
    sweep = changed("space", FORMS) | {"search": {"algorithm": "grid"}}
    assert parse_sweep(sweep, folder).search_space.size == 3 + 2 * 2 * 3
    sweep["space"] = FORMS | {"seed": {"int": [0, 100_000]}}
    with pytest.raises(SweepSpecError, match=r"^space: got .*1 to 100000 configurations"):
        parse_sweep(sweep, folder)


def test_cmaes_takes_one_objective_and_two_ranges(folder: Path) -> None:
    sweep = changed("space/lora.dropout", {"uniform": [0.0, 0.1]})
    sweep["search"] = {"algorithm": "cmaes"}
    parse_sweep(sweep, folder)
    for change, message in (
        ({"objective": {"also": {"peak_memory_gib": "min"}}}, "cmaes takes one objective"),
        ({"space": sweep["space"] | {"lora.dropout": 0.1}}, "less than two ranges"),
    ):
        with pytest.raises(SweepSpecError, match=rf"^search\.algorithm: got 'cmaes'.*{message}"):
            parse_sweep(sweep | change, folder)


def test_whole_start_point_must_be_one_that_may_be_tried(folder: Path) -> None:
    sweep = changed("space", FORMS) | {"forbid": [{"lora.rank": 4, "seed": 1}]}
    start = [{"lora.rank": 4}, {"seed": 1}, {"lora.rank": "4", "seed": 2, "lora.dropout": 0.1}]
    assert parse_sweep(sweep | {"search": {"start": start}}, folder).search.start == tuple(start)
    with pytest.raises(SweepSpecError, match=r"^search\.start\[0\]: got .*forbid\[0\]"):
        parse_sweep(sweep | {"search": {"start": [{"lora.rank": 4, "seed": 1}]}}, folder)
