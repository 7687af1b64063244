"""Makes the demo data: a definition from WordNet 3.0, to be answered with its semantic class.

Needs the database files of WordNet: `apt install wordnet-base` puts them in /usr/share/wordnet.

    python sweeps/data/make_wordnet_classes.py --out sweeps/data

Names and Latin taxa are left out, so that the class has to be read off the definition of a common
word. No word stands in two rows, hence none crosses the splits.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLASSES = {
    5: "noun.animal",
    6: "noun.artifact",
    8: "noun.body",
    12: "noun.feeling",
    13: "noun.food",
    15: "noun.location",
    18: "noun.person",
    20: "noun.plant",
    28: "noun.time",
    31: "verb.cognition",
    32: "verb.communication",
    38: "verb.motion",
}
"""Lexicographer file numbers (lexnames, section 5WN) and their names."""

ROWS_PER_CLASS = {"train": 120, "validation": 12, "test": 18}


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One meaning: its class, the words for it and its definition."""

    label: str
    words: tuple[str, ...]
    definition: str


def read_synsets(path: Path) -> Iterator[Synset]:
    """Usable synsets of a `data.*` file (wndb, section 5WN), in its order."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition("|")
        columns = fields.split()
        label = CLASSES.get(int(columns[1]))
        word_count = int(columns[3], 16)
        words = tuple(word.replace("_", " ") for word in columns[4 : 4 + 2 * word_count : 2])
        definition = parse_definition(gloss)
        is_common = all(word == word.lower() for word in words)
        if label and definition and is_common:
            yield Synset(label=label, words=words, definition=definition)


def parse_definition(gloss: str) -> str | None:
    """The gloss without its example sentences; `None` unless that is 4 to 20 words."""
    definition = re.split(r';?\s*"', gloss, maxsplit=1)[0].strip().rstrip(";:,")
    is_whole = definition.count("(") == definition.count(")")
    return definition if is_whole and 4 <= len(definition.split()) <= 20 else None


def choose_synsets(synsets: list[Synset], seed: int) -> dict[str, list[Synset]]:
    """Equally many synsets of each class, no word and no definition twice."""
    wanted = sum(ROWS_PER_CLASS.values())
    chosen: dict[str, list[Synset]] = {label: [] for label in CLASSES.values()}
    seen: set[str] = set()
    random.Random(seed).shuffle(synsets)
    for synset in synsets:
        keys = {word.casefold() for word in synset.words} | {synset.definition.casefold()}
        if len(chosen[synset.label]) < wanted and seen.isdisjoint(keys):
            chosen[synset.label].append(synset)
            seen |= keys
    short = {label: len(found) for label, found in chosen.items() if len(found) < wanted}
    if short:
        raise SystemExit(f"classes with fewer than {wanted} synsets: {short}")
    return chosen


def build_row(synset: Synset) -> dict[str, str]:
    """A row as `trainables.rows.data` reads it."""
    return {
        "prompt": f"Definition: {synset.definition}\nClass:",
        "completion": f" {synset.label}",
        "lemma": synset.words[0],
    }


def write_splits(chosen: dict[str, list[Synset]], folder: Path, seed: int) -> None:
    """One shuffled JSONL file for each split."""
    start = 0
    for split, count in ROWS_PER_CLASS.items():
        rows = [build_row(s) for found in chosen.values() for s in found[start : start + count]]
        random.Random(f"{seed} {split}").shuffle(rows)
        path = folder / f"wordnet_classes.{split}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{path}: {len(rows)} rows")
        start += count


def main() -> None:
    """Read WordNet and write the three files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    synsets = [
        synset
        for part in ("noun", "verb")
        for synset in read_synsets(arguments.wordnet / f"data.{part}")
    ]
    write_splits(choose_synsets(synsets, arguments.seed), arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
