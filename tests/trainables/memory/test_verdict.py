"""A trial that does not fit is refused with the nearest change that does."""

from dataclasses import replace

import pytest

from tests.trainables.memory.test_published import LLAMA_3_8B
from trainables.errors import SpecError
from trainables.memory.architecture import Architecture
from trainables.memory.forecast import Device
from trainables.memory.verdict import Limits, MemoryModel, changed_trial
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

GB = 10**9
MODEL = MemoryModel(
    shape=Architecture.from_config(LLAMA_3_8B), limits=Limits(), device=Device(is_cuda=True)
)


def trial(**optim) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model="owner/name"),
        lora=LoraSpec(rank=16),
        optim=OptimSpec(steps=10, **{"batch_size": 8, **optim}),
        data=DataSpec(train="owner/rows", max_tokens=512),
        eval=EvalSpec(batch_size=8),
    )


def test_a_trial_that_fits_has_no_remedy():
    verdict = MODEL.fits(trial(), 80 * GB)
    assert (verdict.fits, verdict.reason, verdict.remedy) == (True, "", "")


@pytest.mark.parametrize(
    ("optim", "tokens", "capacity", "remedy"),
    [
        ({"gradient_checkpointing": False}, 4096, 13, "optim.gradient_checkpointing: auto"),
        ({}, 512, 6, ""),
        ({}, 4096, 12, "eval.batch_size: 1"),
        ({}, 16384, 8, "optim.gradient_checkpointing: auto, eval.batch_size: 1, data.max_tokens"),
    ],
)
def test_the_remedy_fits_and_is_the_first_that_does(optim, tokens, capacity, remedy):
    asked = replace(trial(**optim), data=DataSpec(train="owner/rows", max_tokens=tokens))
    verdict = MODEL.fits(asked, capacity * GB)
    assert not verdict.fits
    assert verdict.needed > capacity * GB
    assert verdict.remedy.startswith(remedy)
    if verdict.remedy:
        pairs = dict(one.split(": ") for one in verdict.remedy.split(", "))
        change = {name: int(one) if one.isdigit() else one for name, one in pairs.items()}
        changed = MODEL.fits(changed_trial(asked, change), capacity * GB)
        assert changed.fits
        assert changed.needed < verdict.needed
    else:
        assert "base alone" in verdict.reason


def test_what_fits_only_with_memory_saved_is_tight():
    plain, least = MODEL.forecast(trial()).total, MODEL.least(trial()).total
    assert least < plain
    assert not MODEL.fits(trial(), plain).is_tight
    assert MODEL.fits(trial(), plain - 1).is_tight
    assert MODEL.fits(trial(), least).is_tight
    assert not MODEL.fits(trial(), least - 1).fits


def test_a_base_that_does_not_fit_has_no_remedy_but_another_form():
    plain = replace(trial(), base=BaseSpec(model="owner/name", quantization="none"))
    verdict = MODEL.fits(plain, 16 * GB)
    assert "base alone" in verdict.reason
    assert verdict.remedy.startswith("base.quantization: nf4")
    verdict = MODEL.fits(trial(), 5 * GB)
    assert "base alone" in verdict.reason
    assert verdict.remedy == ""


def test_the_stated_error_lets_a_near_miss_through():
    needed = MODEL.least(trial()).total
    assert not MODEL.fits(trial(), needed - 1).fits
    assert MODEL.fits(trial(), round(needed * 0.95), margin=0.1).fits
    assert not MODEL.fits(trial(), round(needed * 0.85), margin=0.1).fits


def test_seats_are_as_many_as_fit_and_one_more_does_not():
    small = changed_trial(trial(), {"optim.micro_batch_size": 1, "eval.batch_size": 1})
    seats = MODEL.seats(small, 80 * GB)
    assert seats > MODEL.seats(small, 40 * GB) >= 2
    assert MODEL.forecast(small, seats).total <= 80 * GB < MODEL.forecast(small, seats + 1).total
    assert MODEL.seats(trial(), 8 * GB) == 0


def test_rows_are_as_long_as_they_are_and_cut_where_the_trial_cuts_them():
    limits = Limits(
        longest_train=100, longest_evaluated=2000, train_answers=7, evaluated_answers=90
    )
    lengths = limits.of(trial())
    assert (lengths.train, lengths.evaluation) == (100, 512)
    assert (lengths.train_answers, lengths.evaluation_answers) == (7, 90)
    cut = replace(trial(), data=DataSpec(train="x/y", max_tokens=512, train_max_tokens=64))
    assert limits.of(cut).train == 64
    assert Limits().of(trial()).train == 512


def test_targets_that_the_base_lacks_are_an_error():
    with pytest.raises(SpecError, match=r"lora\.targets"):
        MODEL.fits(replace(trial(), lora=LoraSpec(targets=("c_attn",))), 80 * GB)
