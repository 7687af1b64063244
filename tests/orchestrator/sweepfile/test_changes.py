"""`--set FIELD=VALUE` says what a changed file would say."""

import json
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import SweepSpecError
from orchestrator.spec.sweep import SweepSpec
from orchestrator.sweepfile.changes import apply_changes, parse_changes

SWEEP = {
    "name": "tiny",
    "base": {"model": "owner/name"},
    "data": {"train": "owner/rows"},
    "optim": {"steps": 20},
    "eval": {"every": 10},
    "space": {
        "lora.rank": {"choice": [2, 4]},
        "lora.dropout": {"uniform": [0.0, 0.1], "when": {"lora.rank": 4}},
        "lora.alpha_per_rank": {"choice": [1, 2]},
    },
    "budget": {"trials": 2},
}


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    return path


def test_a_change_equals_the_changed_file(sweep_file: Path) -> None:
    changed = SweepSpec.from_yaml(
        sweep_file,
        [
            "space.lora.rank={choice: [4, 8]}",
            "space.optim.weight_decay={log_uniform: [1e-5,1e-3]}",
            "optim.learning_rate=1e-4",
            "register.licenses.base=apache-2.0",
            "lora.dropout=0.05",
            "data.template_args.today=2026-01-31",
        ],
    )
    knobs = {"lora.rank": {"choice": [4, 8]}, "optim.weight_decay": {"log_uniform": [1e-5, 1e-3]}}
    values = SWEEP | {
        "space": SWEEP["space"] | knobs,
        "optim": {"steps": 20, "learning_rate": 1e-4},
        "register": {"licenses": {"base": "apache-2.0"}},
        "lora": {"dropout": 0.05},
        "data": {"train": "owner/rows", "template_args": {"today": "2026-01-31"}},
    }
    sweep_file.write_text(yaml.safe_dump(values))
    assert changed == SweepSpec.from_yaml(sweep_file)


def test_the_same_changes_give_the_same_digest_and_others_another(sweep_file: Path) -> None:
    plain = SweepSpec.from_yaml(sweep_file)
    changed = SweepSpec.from_yaml(sweep_file, ["optim.learning_rate=1e-3"])
    assert changed.optim.learning_rate == 1e-3
    assert changed.digest == SweepSpec.from_yaml(sweep_file, ["optim.learning_rate=0.001"]).digest
    assert changed.digest != plain.digest
    assert SweepSpec.from_yaml(sweep_file, ["budget.trials=9"]).digest == plain.digest


def test_a_path_starts_at_the_working_directory(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.jsonl").write_text(json.dumps({"text": "a"}))
    monkeypatch.chdir(here)
    changed = SweepSpec.from_yaml(sweep_file, ["data.train=mine.jsonl"])
    assert changed.data.train == str(here / "mine.jsonl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["lora.rank=16"], "--set lora.rank: got 16, which has no effect, as space.lora.rank"),
        (["lora.alpha=16"], "--set lora.alpha: got 16, which has no effect, as space.lora.alpha_"),
        (["lora.rnk=16"], "lora.rnk: did you mean rank? Unknown key"),
        (["rank=16"], "rank: did you mean lora.rank? Unknown key"),
        (["optim.steps=x"], "optim.steps: got 'x'; allowed: a whole number"),
        (["optim.steps"], "--set: got 'optim.steps'; allowed: FIELD=VALUE"),
        (["optim.steps="], "--set: got 'optim.steps='; allowed: FIELD=VALUE"),
        (["=3"], "--set: got '=3'; allowed: FIELD=VALUE"),
        (["lora..rank=3"], "--set: got 'lora..rank=3'; allowed: FIELD=VALUE"),
        (["seed=1", "seed=2"], "--set seed: given twice"),
        (["lora.targets=[q_proj"], "--set lora.targets, line 1, column 1: the bracket that opens"),
        (["lora.targets={a: &a [*a]}"], "--set lora.targets, line 1, column 9: got *a contains"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_impossible_change_is_named(sweep_file: Path, changes: list[str], said: str) -> None:
    with pytest.raises(SweepSpecError) as caught:
        SweepSpec.from_yaml(sweep_file, changes)
    assert str(caught.value).startswith(said)
    if not said.startswith("--set"):
        assert str(caught.value).endswith(f"\nfrom --set {changes[0]}")


def test_a_setting_searched_under_a_condition_has_a_fixed_value_beside_it(
    sweep_file: Path,
) -> None:
    assert SweepSpec.from_yaml(sweep_file, ["lora.dropout=0.2"]).lora.dropout == 0.2


def test_the_values_that_are_changed_stay_as_they_are() -> None:
    values = {"lora": {"rank": 8, "alpha": 16}, "register": None}
    changes = parse_changes(["lora.rank=4", "register.name=x"])
    assert apply_changes(values, changes) == {
        "lora": {"rank": 4, "alpha": 16},
        "register": {"name": "x"},
    }
    assert values == {"lora": {"rank": 8, "alpha": 16}, "register": None}
