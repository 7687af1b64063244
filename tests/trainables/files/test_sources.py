"""Folders, globs and files: which of them hold the rows that are asked for."""

import gzip
import json
from pathlib import Path

import pytest

from trainables.data_spec import DataSpec, SplitNames
from trainables.errors import DataError
from trainables.files.sources import digest_files, files_of, is_local, read_rows, read_source


def write(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"text": name}) + "\n" for name in names)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of training rows, one of each other split, and what lies beside such files."""
    rows = tmp_path / "rows"
    write(rows / "data" / "train-00000-of-00002.jsonl", "a", "b")
    write(rows / "data" / "train-00001-of-00002.jsonl.gz", "c")
    write(rows / "data" / "dev.jsonl", "d")
    write(rows / "test" / "part.jsonl", "e")
    write(rows / ".hidden" / "train.jsonl", "no")
    write(rows / "data" / "._train.jsonl", "no")
    (rows / "README.md").write_text("# Rows\n")
    (rows / "dataset_infos.json").write_text("{}")
    return rows


def texts(source, field: str = "train", **fields) -> list[str]:
    spec = DataSpec(**{"train": "x.jsonl", field: str(source), **fields})
    return [row.values["text"] for row in read_source(spec, field).rows]


def test_folder_gives_each_split_its_files(folder):
    assert texts(folder) == ["a", "b", "c"]
    assert texts(folder, "validation") == ["d"]
    assert texts(folder, "test") == ["e"]


def test_files_of_other_splits_are_named(folder):
    spec = DataSpec(train=str(folder))
    assert read_source(spec, "train").unread == ("data/dev.jsonl", "test/part.jsonl")


def test_files_that_name_no_split_are_for_training(tmp_path):
    write(tmp_path / "rows" / "b.jsonl", "b")
    write(tmp_path / "rows" / "a.ndjson", "a")
    assert texts(tmp_path / "rows") == ["a", "b"]
    with pytest.raises(DataError, match=r"^data\.test: cannot load split 'test' of the folder"):
        texts(tmp_path / "rows", "test")


def test_split_of_a_folder_can_be_named(folder):
    assert texts(folder, split=SplitNames(train="test")) == ["e"]
    assert texts(folder, "validation", split={"validation": "train"}) == ["a", "b", "c"]


def test_configuration_and_expression_are_those_of_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = tmp_path / "rows"
    write(rows / "one.jsonl", "a", "b", "c", "d")
    write(rows / "two.jsonl", "e")
    (rows / "README.md").write_text(
        "---\nconfigs:\n- config_name: first\n  data_files: one.jsonl\n"
        "- config_name: second\n  data_files: two.jsonl\n---\n"
    )
    assert texts(rows, config="second") == ["e"]
    assert texts(rows, config="first", split="train[:50%]") == ["a", "b"]
    with pytest.raises(DataError, match=r"^data\.train: cannot load split 'train' of dataset"):
        texts(rows, config="third")


def test_folder_that_datasets_saved_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["a", "b"]


def test_saved_dataset_dict_gives_each_split_its_rows(tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["train"]
    assert texts(tmp_path / "saved", "test") == ["test"]
    with pytest.raises(DataError, match=r"holds the splits train, test"):
        texts(tmp_path / "saved", "validation")


def test_glob_is_its_files_in_order(folder, monkeypatch):
    pattern = f"{folder}/data/train-*"
    assert texts(pattern) == ["a", "b", "c"]
    assert texts(f"{folder}/**/*.jsonl") == ["d", "a", "b", "e"]
    monkeypatch.chdir(folder)
    assert texts("data/*.jsonl") == ["d", "a", "b"]
    with pytest.raises(DataError, match="no file "):
        texts(f"{folder}/none-*.jsonl")


def test_file_with_brackets_in_its_name_is_a_file(tmp_path):
    assert texts(write(tmp_path / "rows[1].jsonl", "a")) == ["a"]


@pytest.mark.parametrize(
    ("source", "is_there"),
    [("owner/name", False), ("owner/name@main", False), ("a/b.csv.zst", True), ("data/*", True)],
)
def test_what_is_local_is_told_by_the_name(source, is_there):
    assert is_local(source) == is_there


def test_digest_follows_names_and_contents_and_not_the_place(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for place in (one, other):
        write(place / "a.jsonl", "a")
        write(place / "b.jsonl", "b")
    assert digest_files(files_of(str(one))) == digest_files(files_of(str(other)))
    before = digest_files(files_of(str(other)))
    write(other / "b.jsonl", "c")
    changed = digest_files(files_of(str(other)))
    (other / "b.jsonl").rename(other / "c.jsonl")
    assert len({before, changed, digest_files(files_of(str(other)))}) == 3


def test_bad_line_of_a_file_to_measure_on_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", "a")
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError, match=r"^evaluation\.rows: .* line 2 is not JSON"):
        read_rows(str(path), "evaluation.rows")
