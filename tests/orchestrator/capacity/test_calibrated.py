"""Forecasts follow what hosts measured, in this sweep and in earlier ones."""

import os

import pytest

from orchestrator.capacity.calibrated import earlier_calibration, is_group, learn
from orchestrator.capacity.earlier import MOST_LOGS, earlier_histories
from orchestrator.hosts.members import base_key
from orchestrator.journal.log import EventLog
from tests.support.events import event
from trainables.memory.calibration import NO_CORRECTION, Calibration, Correction
from trainables.spec import BaseSpec, DataSpec, OptimSpec, TrialSpec

BASE = BaseSpec(model="owner/name")


def group_of(base):
    spec = TrialSpec(base=base, optim=OptimSpec(steps=1), data=DataSpec(train="rows"))
    return base_key(spec.to_dict()["base"])


def measured(factor, base=BASE, tokens=64, **changes):
    fields = {
        "host": "h000", "group": group_of(base), "seats": 1, "train_tokens": tokens,
        "forecast": {"base": 1000, "passing": 400}, "capacity": 10**6, "factor": factor,
        "measured": {"base": 1000, "passing": 400 * factor},
    }  # fmt: skip
    return event("host_measured", **{**fields, **changes})


@pytest.mark.parametrize(
    "base",
    [
        BASE,
        BaseSpec(model="owner/name", revision="main"),
        BaseSpec(model="owner/name", quantization="none", double_quant=False),
        BaseSpec(model="/a folder/base", quantization="fp4", compute_dtype="float32"),
    ],
)
def test_a_group_is_known_by_base_form_and_compute_type(base):
    assert is_group(group_of(base), base)
    assert not is_group(group_of(base), BaseSpec(model="owner/other"))
    assert not is_group(group_of(base), BaseSpec(model=base.model, compute_dtype="float16"))
    assert not is_group("", base)


def test_the_last_measurement_of_a_length_counts():
    other = BaseSpec(model="owner/name", quantization="none", double_quant=False)
    events = [measured(1.2), measured(1.9, other), measured(1.3), measured(0.8, tokens=512)]
    before = Calibration(by_length={9: Correction(factor=1.1)})
    found = learn(before, events, BASE)
    assert {tokens: one.factor for tokens, one in found.by_length.items()} == {
        9: 1.1, 64: 1.3, 512: 0.8,
    }  # fmt: skip
    assert before.by_length.keys() == {9}


def test_parts_of_another_version_are_passed_over():
    odd = measured(1.5, forecast={"whole": 5}, measured={"whole": 6})
    assert learn(Calibration(), [odd], BASE).by_length == {}


def test_earlier_sweeps_correct_a_plan(tmp_path):
    for number, factor in enumerate((1.4, 1.2)):
        folder = tmp_path / f"sweep-{number}"
        folder.mkdir()
        with EventLog(folder / "events.jsonl") as log:
            log.append(measured(factor))
        os.utime(folder / "events.jsonl", (number, number))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "events.jsonl").write_text("{\n{}\n")
    assert len(list(earlier_histories(tmp_path))) == 2 <= MOST_LOGS
    assert earlier_calibration(tmp_path, BASE).of(64).factor == 1.2
    assert earlier_calibration(tmp_path, BaseSpec(model="owner/other")).of(64) == NO_CORRECTION
