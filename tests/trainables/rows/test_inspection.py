"""What a base makes of the rows is told from its tokenizer, without its weights."""

import shutil
from pathlib import Path

import pytest

from trainables.base.origin import COMPLETE, cache_entry, locate
from trainables.base.stops import load_tokenizer_only
from trainables.data_spec import DataSpec
from trainables.errors import BaseModelError
from trainables.rows.inspection import inspect_data
from trainables.rows.splits import read_raw_splits
from trainables.spec import BaseSpec

PAIRS = tuple({"prompt": f"{n} plus one is", "completion": f" {n + 1}"} for n in range(60))


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A base without weights."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_lengths_and_positions_need_no_weights(base):
    spec = DataSpec(train=PAIRS, max_tokens=16)
    found = inspect_data(BaseSpec(model=str(base)), spec, read_raw_splits(spec))
    lengths = found.splits["train"].lengths
    assert lengths is not None
    assert (lengths.rows, lengths.longest) == (48, 18)
    assert found.positions is not None
    assert found.positions > 0


def test_base_without_a_tokenizer_is_refused(base):
    for file in base.glob("tokenizer*"):
        file.unlink()
    spec = DataSpec(train=PAIRS)
    with pytest.raises(BaseModelError, match=r"^base\.model: the tokenizer of .* cannot be read"):
        inspect_data(BaseSpec(model=str(base)), spec, read_raw_splits(spec))


def test_copy_of_a_gguf_file_in_the_cache_saves_reading_its_vocabulary(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no vocabulary")
    spec = BaseSpec(model=str(file))
    with pytest.raises(BaseModelError):
        load_tokenizer_only(spec)
    copy = cache_entry(locate(spec), "plain")
    shutil.copytree(tiny_base, copy)
    (copy / COMPLETE).write_text("{}")
    assert load_tokenizer_only(spec).eos_token == "<|end|>"
