"""Local sources become absolute, and rows in memory become files."""

from pathlib import Path

import pytest

from orchestrator.errors import SweepSpecError, SweepStorageError
from orchestrator.inputs import content_digest, locate_base, locate_data, save_rows
from trainables.spec import BaseSpec, DataSpec


def test_local_base_is_found_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model.gguf").touch()
    for name in ("model", "./model", "model.gguf"):
        found = locate_base(BaseSpec(model=name), tmp_path).model
        assert found == str(tmp_path / Path(name).name)
    for name in ("owner/name", "package:some_package/model.gguf"):
        assert locate_base(BaseSpec(model=name), tmp_path).model == name
    with pytest.raises(SweepSpecError, match=r"^base\.model: got 'other\.gguf'"):
        locate_base(BaseSpec(model="other.gguf"), tmp_path)


def test_hub_dataset_is_left_alone(tmp_path: Path) -> None:
    data = DataSpec(train="owner/rows", test="owner/rows")
    assert locate_data(data, tmp_path) == data


def test_content_counts_for_files_and_the_name_for_others(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    assert content_digest(str(tmp_path / "a.jsonl")) == content_digest(str(tmp_path / "b.jsonl"))
    assert content_digest("owner/rows") == "owner/rows"
    assert content_digest(None) is None


def test_row_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepSpecError, match=r"^data\.train: a row is not JSON"):
        save_rows(DataSpec(train=({"image": object()},)), tmp_path)


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SweepStorageError, match="cannot be written"):
        save_rows(DataSpec(train=({"text": "a"},)), tmp_path / "file")
