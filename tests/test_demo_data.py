"""The demo data under sweeps/data: balanced, without leaks, and remade by its script."""

import importlib.util
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from trainables.rows.splits import read_raw_splits
from trainables.spec import DataSpec

FOLDER = Path(__file__).parents[1] / "sweeps" / "data"
ROWS = {"train": 1440, "validation": 144, "test": 216}
LICENSE_LINE = "  1 This software and database is being provided to you\n"


def read_split(split: str) -> list[dict[str, str]]:
    text = (FOLDER / f"wordnet_classes.{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", FOLDER / "make_wordnet_classes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("split", ROWS)
def test_split_is_balanced_over_twelve_classes(split):
    counts = Counter(row["completion"] for row in read_split(split))
    assert len(counts) == 12
    assert set(counts.values()) == {ROWS[split] // 12}


def test_no_lemma_and_no_definition_occurs_twice():
    rows = [row for split in ROWS for row in read_split(split)]
    assert len({row["lemma"].casefold() for row in rows}) == len(rows)
    assert len({row["prompt"].casefold() for row in rows}) == len(rows)


def test_definitions_are_short_and_without_examples():
    for split in ROWS:
        for row in read_split(split):
            definition = row["prompt"].removeprefix("Definition: ").removesuffix("\nClass:")
            assert 4 <= len(definition.split()) <= 20
            assert '"' not in definition


def test_demo_data_loads_as_given_splits():
    paths = {split: str(FOLDER / f"wordnet_classes.{split}.jsonl") for split in ROWS}
    raw = read_raw_splits(DataSpec(**paths, group_by="lemma"))
    assert (raw.layout.format, raw.prompt_style) == ("prompt-completion", "plain")
    assert raw.test is not None
    sizes = {split: len(getattr(raw, split).rows) for split in ROWS}
    assert sizes == ROWS


def test_demo_data_is_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.jsonl")) < 400_000


def test_script_reads_words_class_and_definition_of_a_synset(script, tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(
        LICENSE_LINE
        + '02 05 n 02 big_cat 0 cat 0 001 @ 01 n 0000 | a large wild cat; "she saw a big cat"  \n'
        + "03 05 n 01 Felis 0 000 | a genus of rather small cats  \n"
        + "04 03 n 01 thing 0 000 | some class that is not used  \n"
    )
    (synset,) = script.read_synsets(path)
    assert (synset.label, synset.words) == ("noun.animal", ("big cat", "cat"))
    assert synset.definition == "a large wild cat"


@pytest.mark.parametrize(
    "gloss", ["too short here", " ".join(["long"] * 21), '"only an example sentence of some"']
)
def test_script_leaves_out_unusable_definitions(script, gloss):
    assert script.parse_definition(gloss) is None


def test_script_chooses_no_synset_that_shares_a_word(script):
    labels = script.CLASSES.values()
    synsets = [
        script.Synset(
            label=label, words=(f"{label} {n // 2}",), definition=f"definition of {label} {n}"
        )
        for label in labels
        for n in range(300)
    ]
    chosen = script.choose_synsets(synsets, seed=0)
    words = [word for found in chosen.values() for synset in found for word in synset.words]
    assert len(words) == len(set(words)) == 150 * 12


@pytest.fixture
def wordnet() -> None:
    """WordNet's database files are on this machine."""
    if not Path("/usr/share/wordnet/data.noun").exists():
        missing = "needs Debian's wordnet-base: run `make system`"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.mark.usefixtures("wordnet")
def test_script_remakes_the_files(script, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make", "--out", str(tmp_path)])
    script.main()
    for split in ROWS:
        name = f"wordnet_classes.{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
