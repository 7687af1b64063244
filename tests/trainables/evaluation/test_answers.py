"""What is read off completions."""

import math

import pytest

from trainables.errors import SpecError
from trainables.evaluation.answers import (
    evaluate_completions,
    find_choice,
    find_pattern,
    load_metrics,
    metric_digests,
    missing_reading,
)
from trainables.evaluation_spec import EvaluationSpec


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"\d+", "12 or 13", "12"),
        (r"answer: (\w+)", "the answer: yes, the answer: no", "yes"),
        (r"answer: (\w+)?", "answer: ", None),
        (r"\d+", "none", None),
    ],
    ids=["whole-match", "first-group", "group-without-match", "nothing"],
)
def test_a_pattern_finds_its_first_match(pattern, text, found):
    assert find_pattern(pattern, text) == found


@pytest.mark.parametrize(
    ("choices", "text", "found"),
    [
        (("no", "yes"), "I know: yes, not no", "yes"),
        (("A", "B"), "The Answer is B.", "B"),
        (("not", "not sure"), "I am not sure", "not sure"),
        (("C", "C++"), "C++ it is", "C++"),
        (("是", "否"), "答案是否", "是"),
        (("a.b", "axb"), "axb", "axb"),
        (("yes", "no"), "YES", None),
    ],
    ids=["whole-words", "not-in-a-word", "longest", "signs", "no-spaces", "literal", "case"],
)
def test_the_first_choice_is_found(choices, text, found):
    assert find_choice(choices, text) == found


def test_columns_have_a_number_for_each_row():
    how = EvaluationSpec(max_new_tokens=9, pattern=r"\d", choices=("yes", "no"))
    columns = evaluate_completions(
        how, (), [" yes 1\n", "no 2", "what?"], ["yes 1", "well, no: 3", "yes or no 4"]
    )
    assert columns == {
        "exact_match": [1, 0, 0],
        "pattern_match": [1, 0, 0],
        "choice_match": [1, 1, 0],
    }


def test_a_reference_without_truth_is_named():
    how = EvaluationSpec(max_new_tokens=9, pattern=r"\d", choices=("yes", "no"))
    assert missing_reading(how, "yes 1") is None
    assert missing_reading(how, "yes") == ("pattern", r"\d")
    assert missing_reading(how, "1") == ("choices", ("yes", "no"))


@pytest.fixture
def write_metric(tmp_path):
    def write(body: str, name: str = "metric") -> str:
        (tmp_path / f"{name}.py").write_text(body)
        return str(tmp_path / f"{name}.py")

    return write


def judged(named: str) -> dict[str, list[float]]:
    how = EvaluationSpec(max_new_tokens=9, metrics=(named,))
    return evaluate_completions(how, load_metrics(how.metrics), ["ab", "abc"], ["a", "abc"])


def test_a_metric_of_a_file_scores_rows(write_metric):
    path = write_metric(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Pair:\n    a: 'str'\n"
        "def edits(predictions, references):\n"
        "    pairs = zip(predictions, references)\n"
        "    return [abs(len(p) - len(r)) for p, r in pairs]\n"
        "edits.mode = 'min'\n"
    )
    assert judged(f"{path}:edits")["edits"] == [1.0, 0.0]
    (metric,) = load_metrics((f"{path}:edits",))
    assert (metric.name, metric.mode) == ("edits", "min")


def test_a_metric_of_a_module_is_better_when_larger(write_metric, tmp_path, monkeypatch):
    write_metric("def longer(predictions, references):\n    return map(len, predictions)\n", "own")
    monkeypatch.syspath_prepend(tmp_path)
    assert judged("own:longer")["longer"] == [2.0, 3.0]
    assert load_metrics(("own:longer",))[0].mode == "max"


def test_a_metric_cannot_change_what_others_see(write_metric):
    path = write_metric("def clearing(p, r):\n    p.clear()\n    return [0, 0]\n")
    how = EvaluationSpec(max_new_tokens=9, metrics=(f"{path}:clearing",))
    predictions = ["a", "b"]
    evaluate_completions(how, load_metrics(how.metrics), predictions, ["a", "b"])
    assert predictions == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "called", "message"),
    [
        ("def one(p, r): return []", "two", r"has no function 'two'; allowed: one\."),
        ("two = 3", "two", r"has no function 'two'; allowed: \(it has none\)"),
        ("def loss(p, r): return []", "loss", "but the name 'loss' is taken"),
        ("def f(p, r): return []\nf.mode = 'up'", "f", "has mode 'up'; allowed: min, max"),
        ("import no_such_package_at_all", "f", "cannot be imported .*no_such_package_at_all"),
        ("def f(p, r) return", "f", "cannot be imported"),
        ("def f(p, r): return [1]", "f", "f gave 1 numbers; allowed: a list of 2 finite numbers"),
        ("def f(p, r): return [1, float('nan')]", "f", "f gave nan for row 2"),
        ("def f(p, r): return 0.5", "f", r"f gave a float \(.*not iterable"),
        ("def f(p, r): return ['a', 'b']", "f", "f gave a list .*could not convert"),
    ],
    ids=[
        "no-function", "no-callable", "taken", "mode", "import", "syntax", "length", "nan",
        "scalar", "words",
    ],
)  # fmt: skip
def test_an_impossible_metric_is_refused(write_metric, body, called, message):
    path = write_metric(body)
    with pytest.raises(SpecError, match=f"(?s)evaluation.metrics: .*{message}"):
        judged(f"{path}:{called}")


@pytest.mark.parametrize("named", ["no_such_module:f", "/no/such/file.py:f", "..x:f"])
def test_a_missing_module_or_file_is_refused(named):
    with pytest.raises(SpecError, match=r"evaluation\.metrics: "):
        load_metrics((named,))


def test_an_infinite_score_is_refused(write_metric):
    path = write_metric("import math\ndef f(p, r):\n    return [math.inf, 1]\n")
    with pytest.raises(SpecError, match=f"f gave {math.inf} for row 1"):
        judged(f"{path}:f")


def test_metrics_of_one_name_are_told_apart_by_their_source(tmp_path):
    for folder, constant in (("a", 1.0), ("b", 0.0)):
        (tmp_path / folder).mkdir()
        source = (
            f"def score(predictions, references):\n    return [{constant}] * len(predictions)\n"
        )
        (tmp_path / folder / "own.py").write_text(source)
    first, second = (metric_digests([f"{tmp_path}/{name}/own.py:score"]) for name in "ab")
    assert first.keys() == second.keys() == {"score"}
    assert first["score"] != second["score"]
    with pytest.raises(SpecError, match="cannot be read"):
        metric_digests([f"{tmp_path}/nowhere.py:score"])
