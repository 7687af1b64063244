"""Pieces of a page."""

from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from orchestrator.report.markup import cell, document, embed, folded, note, number, table

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
    ],
    ids=["cell", "number", "note", "folded", "table", "document"],
)
def test_foreign_text_is_text_wherever_it_stands(make):
    page = make(HOSTILE)
    assert "<img" not in page.replace("<script>/**", "")[-5000:]
    tags = Tags(page)
    assert "img" not in tags.names
    assert HOSTILE in tags.text


def test_a_document_leaves_out_empty_sections_and_holds_plotly_once():
    page = document("T", "S", [("with", "<p>content</p>"), ("without", "")])
    assert "<h2>with</h2>" in page
    assert "without" not in page[-1000:]
    assert page.count("* plotly.js v") == 1
    assert "<script src" not in page


def test_a_table_without_rows_is_nothing_and_one_without_heads_has_no_head():
    assert table(["a"], []) == ""
    assert "<thead>" not in table(["", ""], [[cell("a"), cell("b")]])
    dense = table(["a"], [[cell("x")], [cell("y")]], ["best", ""], is_dense=True)
    assert 'class="wide dense"' in dense
    assert dense.count('class="best"') == 1


def test_a_figure_is_embedded_under_its_name_without_the_library():
    figure = go.Figure(go.Scatter(x=[1], y=[2], name=HOSTILE))
    content = embed(figure, "curves")
    assert 'id="curves"' in content
    assert len(content) < 20_000
    assert "</script><img" not in content
