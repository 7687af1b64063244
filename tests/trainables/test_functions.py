"""Functions that a sweep file names: found, run and digested."""

import hashlib

import pytest

from trainables.errors import SpecError
from trainables.functions import load_function, names_function, source_digest


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def double(value):\n    return 2 * value\n")
    return path


def test_a_function_of_a_file_is_run_and_counts_by_its_source(source, tmp_path):
    name = f"{source}:double"
    assert load_function(name, "eval.metric")(3) == 6
    assert source_digest(name, "x") == "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    moved = source.rename(tmp_path / "moved.py")
    assert source_digest(f"{moved}:double", "x").startswith("sha256:")
    moved.write_text("double = int\n")
    assert load_function(f"{moved}:double", "x")("4") == 4, "a changed file is run again"


def test_a_function_of_a_module_is_found():
    assert load_function("statistics:fmean", "eval.metric")([1, 3]) == 2


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("rows.py:tickets", True),
        ("a.b:c", True),
        ("owner/name", False),
        ("rows.jsonl", False),
        ("s3://bucket/rows", False),
        ("package:tiny/rows.gguf", False),
    ],
)
def test_only_a_name_behind_a_colon_names_a_function(text, is_name):
    assert names_function(text) is is_name


def test_what_cannot_be_loaded_is_told_with_its_field(source, tmp_path):
    with pytest.raises(SpecError, match=r"exits\.stop: got .*no function 'triple'.*: double"):
        load_function(f"{source}:triple", "exits.stop")
    with pytest.raises(SpecError, match=r"data\.train: there is no file"):
        load_function(f"{tmp_path}/gone.py:rows", "data.train")
    with pytest.raises(SpecError, match=r"eval\.metric: .*cannot be read"):
        source_digest(f"{tmp_path}/gone.py:rows", "eval.metric")
