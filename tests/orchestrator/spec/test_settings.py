"""Names of settings, settings that may be searched, and trials from changed settings."""

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.settings import (
    KNOBS,
    NUMBERS,
    SETTINGS,
    FixedSettings,
    assemble,
    flatten,
    require_knob,
    without_rows,
)
from trainables.memory_settings import MEMORY_NAMES
from trainables.spec import (
    BaseSpec,
    DataSpec,
    EvalSpec,
    LoraSpec,
    OptimSpec,
)

FIXED = FixedSettings(
    base=BaseSpec(model="owner/name"),
    lora=LoraSpec(targets=("v_proj", "q_proj")),
    optim=OptimSpec(steps=40),
    data=DataSpec(train=({"text": "a"},), test=({"text": "b"},)),
    eval=EvalSpec(),
    seed=3,
)


def test_every_setting_that_changes_an_adapter_is_a_knob_but_the_horizon() -> None:
    memory = set(MEMORY_NAMES)
    assert SETTINGS.keys() - KNOBS.keys() == {"optim.steps"} | memory | {
        name
        for name in SETTINGS
        if name.startswith(("data.", "eval.")) and name != "data.train_max_tokens"
    }
    assert KNOBS.keys() - SETTINGS.keys() == {"lora.alpha_per_rank"}
    assert {"seed", "data.train_max_tokens", "base.quantization", "lora.rank"} <= KNOBS.keys()


def test_one_calculates_with_numbers_only() -> None:
    wanted = {"seed", "optim.steps", "optim.micro_batch_size", "eval.every", "data.max_tokens"}
    assert wanted <= set(NUMBERS)
    assert not {"lora.rslora", "lora.targets", "base.model", "data.train"} & set(NUMBERS)


@pytest.mark.parametrize(
    "name",
    [
        "data",
        "eval",
        "data.train",
        "data.max_tokens",
        "optim.steps",
        "optim.gradient_checkpointing",
        "base.dense",
    ],
)
def test_setting_that_must_be_alike_says_why(name: str) -> None:
    with pytest.raises(SweepSpecError, match=rf"^space\.{name}: cannot be searched, as .*outside"):
        require_knob(name)


def test_changes_are_made_where_their_names_say() -> None:
    changes = {"lora.rank": 4, "lora.targets": ["o_proj"], "seed": 5, "base.revision": "main"}
    trial = assemble(FIXED, changes | {"data.train_max_tokens": 64})
    values = flatten(trial)
    assert {name for name in values if values[name] != flatten(FIXED)[name]} == {
        *changes,
        "data.train_max_tokens",
    }
    assert trial.lora.targets == ("o_proj",)
    assert flatten(FIXED)["lora.targets"] == ["q_proj", "v_proj"]


def test_rows_in_memory_are_left_out() -> None:
    data = without_rows(FIXED).data
    assert (data.train, data.validation, data.test) == ("rows of train", None, "rows of test")
    named = FixedSettings(**{**vars(FIXED), "data": DataSpec(train="owner/rows")})
    assert without_rows(named) == named


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"lora.rank": 0}, "lora.rank: got 0"),
        ({"lora.rank": 7, "lora.init": "orthogonal"}, "lora.rank: got 7"),
        ({"lora.dora": True, "base.quantization": "int8"}, "lora.dora: got True"),
        ({"seed": 2**32}, "seed: got 4294967296"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict, start: str) -> None:
    with pytest.raises(SweepSpecError, match=f"^{start}"):
        assemble(FIXED, changes)
