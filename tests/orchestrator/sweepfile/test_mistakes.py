"""A text that is not YAML: what is wrong in words, and a caret below the character to change."""

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.sweepfile.reading import YamlText

CASES = {
    "tab": ("lora:\n\trank: 8\n", "line 2, column 1: a tab is not allowed here. Use spaces"),
    "tab-inside": ("name:\ta\nb: {c: 8}\n", "line 1, column 6: a tab is not allowed here"),
    "colon": ("a: b\nseed 7\nb: c\n", "line 2, column 5: a colon is missing"),
    "colon-of-section": ("lora\n  rank: 8\n", "line 1, column 5: a colon is missing"),
    "colon-first": ("name a\nb: c\n", "line 1, column 5: a colon is missing"),
    "space": ("lora:\n  rank:8\n  alpha: 3\n", "line 2, column 8: a space is missing after the"),
    "two-colons": ("optim: steps: 3\n", "line 1, column 13: a second colon in one line. Quote"),
    "deeper": ("a: b\n  c: 3\n", "line 2, column 3: the line is indented deeper than the line"),
    "shallower": ("a:\n    b: 8\n  c: 3\n", "line 3, column 3: the indentation of this line fits"),
    "brace": ("a: {b: 8\nc: 3\n", "line 1, column 4: the bracket that opens here is not closed"),
    "bracket": ("a: [1, 2\n", "line 1, column 4: the bracket that opens here is not closed by ]"),
    "other-bracket": ("a: [1, 2}\n", "line 1, column 9: } closes a bracket that needs ]"),
    "extra-bracket": ("a: [1, 2]]\nb: 3\n", "line 1, column 10: ] closes no bracket. Remove it"),
    "quote": ("a: 'b\nc: d\n", "line 1, column 4: the quote that opens here is not closed"),
    "after-quote": ("a: 'b' c\n", "line 1, column 8: text follows a value that is complete"),
    "comma": ("a: {b: 8 c: 3}\n", "line 1, column 10: a comma is missing before this"),
    "twice": ("a: 1\na: 2\n", "line 2, column 1: 'a' is given twice. Remove one"),
    "at": ("a: @b\n", "line 1, column 4: a value cannot begin with @. Put the text in single"),
    "glob": ("a: *.jsonl\n", "line 1, column 4: * begins a reference of YAML"),
    "alias": ("a: *b\n", "line 1, column 4: * begins a reference of YAML"),
    "escape": ('a: "\\d+"\n', r"line 1, column 6: \d is no escape of a text in double quotes"),
    "documents": ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document begins here"),
    "item": ("a:\n  b: 8\n  - c\n", "line 3, column 3: a list item (- …) stands among lines of"),
    "key-among-items": ("- a\nb: 3\n", "line 2, column 1: a line of key: value stands among list"),
    "key": ("{a: 1}: 2\n", "line 1, column 1: a list or mapping stands in the place of a key"),
    "pipe": ("a: |b\n", "line 1, column 5: text follows | or >"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), CASES.values(), ids=CASES)
def test_a_mistake_is_told_in_words_with_a_caret_below_it(text: str, said: str) -> None:
    with pytest.raises(SweepSpecError) as caught:
        YamlText("sweep.yaml", text).value()
    sentence, line, caret = str(caught.value).split("\n")
    assert sentence.startswith(f"sweep.yaml, {said}")
    number, column = (int(word.strip(",:")) for word in sentence.split()[2:5:2])
    assert line == f"{number:>5} | {text.splitlines()[number - 1]}".replace("\t", " ").rstrip()
    assert caret == "      | " + " " * (column - 1) + "^"
