"""Sweep files that are checked on a laptop and run in a cluster."""

from pathlib import Path

import pytest
import yaml

from orchestrator.cluster.sweep_file import differences, read_submitted, read_sweep_file
from orchestrator.errors import SweepSpecError


def read(write_sweep, *changes, places=(), **sections):
    return read_sweep_file(Path(write_sweep(**sections)), changes, places)


def test_rows_and_bases_of_the_image_are_names_here(write_sweep):
    data = {"train": "/opt/lorchestra/sweeps/data/x.jsonl", "validation": "owner/rows"}
    base = {"model": "package:of_the_image/base.gguf"}
    sweep = read(write_sweep, data=data, base=base)
    assert not sweep.is_whole
    assert sweep.settings["data"]["train"] == data["train"]
    assert sweep.settings["base"]["model"] == base["model"]
    assert sweep.settings["optim"]["steps"] == 20
    assert sweep.settings["seed"] == 0
    assert yaml.safe_load(sweep.text)["data"] == data


def test_bases_of_a_volume_can_be_searched(write_sweep):
    models = ["/storage/bases/a.gguf", "owner/name"]
    rule = {"base.model": models[0], "lora.rank": 4}
    space = {"base.model": {"choice": models}, "lora.rank": {"choice": [2, 4]}}
    sweep = read(write_sweep, places=["/storage"], space=space, forbid=[rule])
    assert sweep.settings["space"]["base.model"]["choice"] == models
    assert sweep.settings["forbid"] == [rule]


def test_what_only_the_hub_has_is_whole(write_sweep):
    assert read(write_sweep).is_whole


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"data": {"train": "rows.jsonl"}}, "data.train"),
        ({"data": {"train": "/srv/rows.jsonl"}}, "data.train"),
        ({"data": {"train": "owner/rows", "test": "~/rows/*.jsonl"}}, "data.test"),
        ({"data": {"train": "/opt/lorchestrated/rows.jsonl"}}, "data.train"),
        ({"base": {"model": "./base"}}, "base.model"),
        ({"base": {"model": "/srv/base.gguf"}}, "base.model"),
    ],
)
def test_a_path_of_the_laptop_is_refused_with_its_line(write_sweep, sections, field):
    with pytest.raises(SweepSpecError) as caught:
        read(write_sweep, **sections)
    assert str(caught.value).startswith(f"{field}: got ")
    assert "a path that no node of the cluster has" in str(caught.value)
    assert "sweep.yaml, line " in str(caught.value)


def test_a_function_in_a_file_of_the_laptop_is_refused(write_sweep):
    with pytest.raises(SweepSpecError, match=r"eval.metric: got 'own.py:score', a file that no"):
        read(write_sweep, eval={"every": 10, "metric": "own.py:score"})


def test_other_mistakes_are_told_as_by_check(write_sweep):
    with pytest.raises(SweepSpecError, match=r"optim.steps: got 25; allowed: a multiple"):
        read(write_sweep, optim={"steps": 25})
    with pytest.raises(SweepSpecError, match=r"from --set optim.steps=25"):
        read(write_sweep, "optim.steps=25")


def test_changes_are_in_the_text_that_the_driver_reads(write_sweep):
    sweep = read(write_sweep, "optim.steps=40", "optim.learning_rate=1.0e-4")
    again = read_submitted(sweep.text, "ConfigMap")
    assert again.settings == sweep.settings
    assert again.settings["optim"]["learning_rate"] == pytest.approx(1e-4)


def test_differences_are_told_by_field(write_sweep):
    before = read(write_sweep).settings
    assert differences(before, read(write_sweep, lora={"rank": 8}, seed=0).settings) == ""
    now = read(write_sweep, "budget.trials=3", data={"train": "owner/others"}).settings
    assert differences(before, now) == (
        "data.train was owner/rows, is owner/others; budget.trials was 2, is 3"
    )
    many = {f"x{i}": i for i in range(9)}
    assert differences({}, many).endswith("x4 was absent, is 4; and 4 more")
