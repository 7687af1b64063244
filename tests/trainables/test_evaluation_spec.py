"""What an evaluation may ask for."""

import pytest
from pydantic import TypeAdapter, ValidationError

from trainables.errors import SpecError
from trainables.evaluation_spec import EvaluationSpec


def test_lists_become_tuples_and_equal_specs_are_equal():
    one = EvaluationSpec(max_new_tokens=4, choices=["a", "b"], metrics=["m:f"])
    assert one == EvaluationSpec(max_new_tokens=4, choices=("a", "b"), metrics=("m:f",))
    assert one.generates
    assert not EvaluationSpec().generates


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": -1}, r"evaluation\.max_new_tokens: got -1; allowed: >= 0"),
        ({"batch_size": 0}, r"evaluation\.batch_size: got 0"),
        ({"max_rows": 0}, r"evaluation\.max_rows: got 0"),
        (
            {"max_new_tokens": 0, "pattern": "a"},
            r"evaluation\.pattern: got 'a'; allowed: none wit",
        ),
        ({"max_new_tokens": 0, "choices": ("a", "b")}, r"evaluation\.choices: .*max_new_tokens"),
        ({"max_new_tokens": 0, "metrics": ("m:f",)}, r"evaluation\.metrics: .*max_new_tokens"),
        ({"pattern": "("}, r"evaluation\.pattern: got '\(' \(missing \)"),
        ({"pattern": "a*"}, "needs at least one character"),
        ({"choices": ("a",)}, "two or more different"),
        ({"choices": ("a", "b", "a")}, "two or more different"),
        ({"choices": ("a", " b")}, "without outer whitespace"),
        ({"choices": ("a", "")}, "without outer whitespace"),
        ({"choices": "ab"}, "a list of strings"),
        ({"metrics": ("rouge",)}, "module:function or path"),
        ({"metrics": ("m:f", "n:f")}, "functions of different names"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_impossible_is_refused(values, message):
    with pytest.raises(SpecError, match=message):
        EvaluationSpec(**{"max_new_tokens": 4, **values})


def test_a_file_can_hold_one():
    adapter = TypeAdapter(EvaluationSpec)
    parsed = adapter.validate_python({"max_new_tokens": 3, "choices": ["a", "b"]})
    assert parsed == EvaluationSpec(max_new_tokens=3, choices=("a", "b"))
    with pytest.raises(ValidationError, match="max_new_token"):
        adapter.validate_python({"max_new_token": 3})


def test_what_is_measured_is_known_beforehand():
    plain = EvaluationSpec()
    asked = EvaluationSpec(max_new_tokens=4, choices=("a", "b"), metrics=("file.py:rouge",))
    assert plain.measures == ("loss", "perplexity", "bits_per_byte", "token_accuracy", "accuracy")
    assert asked.measures == (*plain.measures, "exact_match", "choice_match", "rouge")
