"""What a trial may be: impossible values and combinations are told with their reason."""

import dataclasses

import pytest

from trainables.errors import SpecError
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec


def build_trial(base=None, lora=None, optim=None, data=None, **others) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model="owner/name", **(base or {})),
        lora=LoraSpec(**(lora or {})),
        optim=OptimSpec(steps=10, **(optim or {})),
        data=DataSpec(train="rows.jsonl", **(data or {})),
        eval=EvalSpec(**others.get("eval", {})),
    )


NEW = {
    "lora": {"dora": True, "init": "orthogonal", "targets": ("q_proj",)},
    "optim": {"loraplus_ratio": 16},
    "data": {"train_max_tokens": 64},
}
ADDED = [
    ("lora", "dora"),
    ("optim", "loraplus_ratio"),
    ("data", "train_max_tokens"),
    ("eval", "keep_every"),
]
"""Settings that specs recorded by version 0.1 lack."""


def test_a_spec_is_rebuilt_from_its_record():
    spec = build_trial(**NEW)
    assert TrialSpec.from_dict(spec.to_dict()) == spec
    assert isinstance(spec.optim.loraplus_ratio, float)


def test_a_record_of_before_a_setting_was_added_is_the_trial_it_was():
    values = build_trial().to_dict()
    for section, name in ADDED:
        del values[section][name]
    assert TrialSpec.from_dict(values) == build_trial()


def test_a_setting_that_no_spec_has_is_refused():
    values = build_trial().to_dict()
    values["lora"]["rnk"] = 4
    with pytest.raises(SpecError, match="rnk"):
        TrialSpec.from_dict(values)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        pytest.param(
            {"base": {"quantization": "int8"}, "lora": {"dora": True}},
            r"lora\.dora: got True; allowed: false with base\.quantization int8\. PEFT 0\.21",
            id="dora-int8",
        ),
        pytest.param(
            {"lora": {"init": "orthogonal", "rank": 5}},
            r"lora\.rank: got 5; allowed: an even rank with lora\.init orthogonal\.",
            id="orthogonal-odd-rank",
        ),
        pytest.param(
            {"optim": {"loraplus_ratio": 0.5}},
            r"optim\.loraplus_ratio: got 0\.5; allowed: a finite number >= 1\. Use 1",
            id="loraplus-below-1",
        ),
        pytest.param(
            {"optim": {"loraplus_ratio": float("inf")}},
            r"optim\.loraplus_ratio",
            id="loraplus-inf",
        ),
        pytest.param(
            {"data": {"max_tokens": 64, "train_max_tokens": 65}},
            r"data\.train_max_tokens: got 65; allowed: 2 to data\.max_tokens \(64\)\.",
            id="trained-longer-than-measured",
        ),
        pytest.param(
            {"data": {"train_max_tokens": 1}},
            r"data\.train_max_tokens: got 1",
            id="train-tokens-1",
        ),
        pytest.param(
            {"eval": {"every": 10, "keep_every": 25}},
            r"eval\.keep_every: got 25; allowed: 0, or a multiple of eval\.every \(10\)\.",
            id="kept-between-evaluations",
        ),
    ],
)
def test_impossible_combinations_say_why(sections, message):
    with pytest.raises(SpecError, match=message):
        build_trial(**sections)


@pytest.mark.parametrize(
    ("init", "reason"),
    [
        ("pissa", "pissa: it changes the base's weights, which the trials of a host share."),
        ("pissa_niter_4", "pissa_niter_4: it changes the base's weights"),
        ("loftq", "loftq: it changes the base's weights"),
        ("olora", "olora: it changes the base's weights"),
        ("corda", "corda: it changes the base's weights"),
        ("mica", "mica: it needs a base of full-precision weights."),
        ("xavier", "Choose one of these."),
    ],
)
def test_inits_that_cannot_be_say_why(init, reason):
    with pytest.raises(SpecError) as caught:
        LoraSpec(init=init)
    assert str(caught.value).startswith(
        f"lora.init: got {init!r}; allowed: kaiming, gaussian, orthogonal, eva. {reason}"
    )


def test_specs_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_trial().seed = 1
