"""What a spec may say of its rows, and what is refused before any row is read."""

import datetime

import pytest

from trainables.data_spec import ColumnsSpec, DataSpec, SplitNames, template_columns
from trainables.errors import SpecError


def spec(**fields) -> DataSpec:
    return DataSpec(train="rows.jsonl", **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"prompt": "q"}}, r"data\.columns: got \{'prompt': 'q'\}"),
        ({"columns": {"completion": "a"}}, r"data\.columns: .*Name the column of the prompt"),
        ({"columns": {"text": "a", "messages": "b"}}, r"data\.columns"),
        ({"columns": {"prompt": "", "completion": "a"}}, r"data\.columns"),
        (
            {"columns": {"prompt": "q", "completion": "a"}, "prompt_template": "{q}"},
            r"data\.prompt_template",
        ),
        ({"prompt_template": "no column"}, r"data\.prompt_template.*at least one column"),
        ({"prompt_template": "{q"}, r"data\.prompt_template.*no template"),
        ({"prompt_template": "{q!r}"}, r"data\.prompt_template"),
        ({"prompt_template": "{q:>9}"}, r"data\.prompt_template"),
        ({"prompt_template": "{}"}, r"data\.prompt_template"),
        ({"on_bad_row": "drop"}, r"data\.on_bad_row: got 'drop'; allowed: fail, skip"),
        ({"on_overlap": "skip"}, r"data\.on_overlap: got 'skip'; allowed: warn, fail, drop"),
        ({"format": "vicuna"}, r"data\.format: .*sharegpt, alpaca"),
    ],
)
def test_impossible_value_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        spec(**fields)


def test_plain_values_of_a_record_become_what_they_were():
    whole = spec(columns=ColumnsSpec(prompt="q", completion="a"), split=SplitNames(test="t[:9]"))
    plain = spec(columns={"prompt": "q", "completion": "a"}, split={"test": "t[:9]"})
    assert plain == whole
    assert hash(plain) == hash(whole)


def test_split_is_that_of_its_source_unless_named():
    assert [spec(split="a+b").split_name(one) for one in ("train", "test")] == ["a+b", "test"]
    named = spec(split=SplitNames(validation="dev"))
    assert [named.split_name(one) for one in ("train", "validation")] == ["train", "dev"]


def test_columns_of_a_template_are_named_once_in_their_order():
    assert template_columns("{b} {{no}} {a b} {b}") == ("b", "a b")


def test_a_day_among_template_args_is_written_as_text():
    spec = DataSpec(train="a.jsonl", template_args={"strftime_now": datetime.date(2026, 1, 31)})
    assert spec.template_args == {"strftime_now": "2026-01-31"}
    assert hash(spec) == hash(DataSpec(train="a.jsonl"))
    assert spec != DataSpec(train="a.jsonl")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"tools": []}, "data.template_args: got 'tools'; allowed: arguments that neither"),
        ({"x": {1, 2}}, "is not JSON serializable.*; allowed: text, numbers, true and"),
    ],
)
def test_template_args_that_cannot_be_given_are_refused(args, message):
    with pytest.raises(SpecError, match=message):
        DataSpec(train="a.jsonl", template_args=args)
