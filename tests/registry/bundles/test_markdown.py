"""Foreign text stays text in Markdown."""

import pytest
from markdown_it import MarkdownIt

from registry.bundles.markdown import code, code_block, one_line, plain, table

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b",
    "`code` and ``more``",
    "**bold** _under_ [link](http://x) ![image](y)",
    "# head\n- item",
    "back\\slash \\| and \x1b[31m",
    "&lt; &amp;",
    "`",
    "~~gone~~ 1. one + two",
    "![x](y)|`|",
]


def parse(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def inline_of(tokens):
    """Kinds and texts of what stands in paragraphs and cells."""
    children = [child for token in tokens for child in token.children or []]
    texts = [child.content for child in children if child.type in ("text", "code_inline")]
    return {child.type for child in children}, "".join(texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_text_is_shown_as_it_is(text):
    tokens = parse(f"x {plain(text)}")
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert inline_of(tokens) == ({"text"}, f"x {one_line(text)}")


@pytest.mark.parametrize("text", HOSTILE)
def test_code_is_shown_as_it_is(text):
    kinds, shown = inline_of(parse(f"x {code(text)}"))
    assert "code_inline" in kinds
    assert shown == f"x {one_line(text)}"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_keeps_its_columns(text):
    tokens = parse(table(["a", "b"], [[plain(text), code(text, in_table=True)]]))
    assert sum(token.type == "td_open" for token in tokens) == 2
    assert sum(token.type == "tr_open" for token in tokens) == 2
    cells = [token for token in tokens if token.type == "inline"][-2:]
    assert inline_of(cells[1:])[1] == one_line(text)


def test_a_code_block_holds_any_backticks():
    lines = ["print('```')", "x = '````'"]
    (token,) = parse(code_block("python", lines))
    assert (token.type, token.info) == ("fence", "python")
    assert token.content == "\n".join(lines) + "\n"


def test_a_table_without_rows_is_nothing():
    assert table(["a"], []) == ""
