"""Pieces of a page."""

import json
import re
from html.parser import HTMLParser

import pytest

from orchestrator.pages.markup import (
    boxed,
    cell,
    document,
    facts,
    folded,
    folded_cell,
    note,
    number,
    table,
)

HOSTILE = "</script><img src=x onerror=\"alert('1')\">&"


class Tags(HTMLParser):
    """Names of all tags, and the text outside of them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "make",
    [
        cell,
        number,
        note,
        lambda text: folded(text, "x"),
        lambda text: table([text], [[cell("x")]]),
        lambda text: document(text, text, [(text, "x")]),
        lambda text: table([(text, text)], [[cell("x")]]),
        lambda text: facts([(text, text)]),
        lambda text: folded_cell(text, text),
        lambda text: boxed(text, "verdict"),
    ],
    ids=[
        "cell",
        "number",
        "note",
        "folded",
        "table",
        "document",
        "head",
        "facts",
        "folded cell",
        "boxed",
    ],
)
def test_foreign_text_is_text_wherever_it_stands(make):
    page = make(HOSTILE)
    assert "<img" not in page
    tags = Tags(page)
    assert "img" not in tags.names
    assert HOSTILE in tags.text


def test_a_document_leaves_out_empty_sections_and_asks_the_network_for_nothing():
    page = document("T", "S", [("with", "<p>content</p>"), ("without", "")])
    assert "<h2>with</h2>" in page
    assert "<h2>without</h2>" not in page
    for tag in ("<script src", "<img", "@import", "http:", "https:"):
        assert tag not in page
    assert len(page) < 30_000


def test_no_label_of_a_trial_can_end_the_script():
    page = document("T", "S", [], labels={5: HOSTILE})
    (data,) = re.findall('<script type="application/json" id="labels">(.*?)</script>', page)
    assert json.loads(data) == {"5": HOSTILE}


def test_a_table_without_rows_is_nothing_and_one_without_heads_has_no_head():
    assert table(["a"], []) == ""
    assert "<thead>" not in table(["", ""], [[cell("a"), cell("b")]])
    dense = table(["a"], [[cell("x")], [cell("y")]], ['class="best"', ""], kind="dense")
    assert 'class="wide dense"' in dense
    assert dense.count('class="best"') == 1


def test_a_number_sorts_by_its_value_and_its_head_stands_above_it():
    found = table([("lr", "optim.learning_rate")], [[number("1e-4", 0.0001)]], is_sortable=True)
    assert 'data-value="0.0001"' in found
    assert '<th scope="col" class="number" title="optim.learning_rate">lr</th>' in found
