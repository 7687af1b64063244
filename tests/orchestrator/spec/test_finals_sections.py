"""Mistakes in `finals` and `register` are refused before the sweep starts."""

from typing import Any

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.spec.finals_sections import FinalsSpec, RegisterSpec, forms_of, require_gate


@pytest.mark.parametrize("name", ["a/b", "A", "-a", "a:b", "x" * 64, ".hidden"])
def test_name_that_is_no_folder_or_model_is_refused(name: str) -> None:
    with pytest.raises(SweepSpecError, match=r"^register\.name: got"):
        RegisterSpec(name=name)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (FinalsSpec, {"forms": ("merged", "merged")}, r"^finals\.forms: got .*each form once"),
        (FinalsSpec, {"max_new_tokens": -1}, r"^finals\.max_new_tokens: got -1"),
        (
            FinalsSpec,
            {"choices": ("a", "b")},
            r"^finals\.choices: got .*finals\.max_new_tokens > 0",
        ),
        (FinalsSpec, {"confidence": 1.0}, r"^finals\.confidence: got 1\.0"),
        (RegisterSpec, {"min_improvement": -0.1}, r"^register\.min_improvement: got -0\.1"),
        (RegisterSpec, {"confidence": 0.3}, r"^register\.confidence: got 0\.3"),
    ],
)
def test_impossible_values_name_their_field(section: Any, values: Any, message: str) -> None:
    with pytest.raises(SweepSpecError, match=message):
        section(**values)


@pytest.mark.parametrize(
    ("objective", "written", "measure"),
    [
        ("eval_loss", "", "loss"),
        ("eval_accuracy", "", "accuracy"),
        ("train_loss", "", "loss"),
        ("eval_loss", "bits_per_byte", "bits_per_byte"),
    ],
)
def test_gate_compares_what_the_sweep_is_about(objective: str, written: str, measure: str) -> None:
    assert RegisterSpec(metric=written).measure(objective) == measure


def test_a_base_that_is_not_quantized_has_fewer_forms() -> None:
    finals = FinalsSpec(forms=("trained", "requantized"))
    assert forms_of(finals, "nf4") == ("trained", "requantized")
    assert forms_of(finals, "none") == ("trained",)


@pytest.mark.parametrize(
    ("finals", "register", "message"),
    [
        ({"forms": ("trained",)}, {"form": "merged"}, r"^register\.form: got 'merged'.*trained"),
        ({}, {"metric": "eval_loss"}, r"^register\.metric: got 'eval_loss'.*loss, perplexity"),
        ({}, {"metric": "exact_match"}, r"^register\.metric: got 'exact_match'"),
    ],
)
def test_a_gate_that_nothing_is_measured_for_is_refused(
    finals: Any, register: Any, message: str
) -> None:
    with pytest.raises(SweepSpecError, match=message):
        require_gate(FinalsSpec(**finals), RegisterSpec(**register))


def test_a_gate_on_what_is_generated_is_fine() -> None:
    require_gate(FinalsSpec(max_new_tokens=4), RegisterSpec(metric="exact_match"))
    require_gate(FinalsSpec(forms=()), RegisterSpec(form="merged"))
