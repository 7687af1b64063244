"""Files as people have them: packed, encoded and separated in many ways, whole or damaged."""

import bz2
import codecs
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainables.errors import DataError
from trainables.files.readers import BadRow, RawRow, parse_json, parse_list, read_file

ROWS = [{"prompt": f"{n} é 日本", "completion": f" {n}"} for n in range(5)]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values_of(path: Path) -> list[dict]:
    found = read_file(path, "data.train")
    assert all(isinstance(one, RawRow) for one in found), found
    return [dict(one.values) for one in found]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zst(content: bytes) -> bytes:
    return pa.Codec("zstd").compress(content, asbytes=True)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        (".jsonl", lambda content: content),
        (".ndjson", lambda content: content),
        (".JSONL", lambda content: content),
        (".jsonl.gz", gzip.compress),
        (".jsonl.zst", zst),
        (".ndjson.bz2", bz2.compress),
        (".jsonl.xz", lzma.compress),
        (".json", lambda content: content),  # one object on each line under the other name
    ],
)
def test_rows_are_read_whatever_the_file_is_packed_in(tmp_path, ending, pack):
    path = write(tmp_path / f"rows{ending}", pack(JSONL.encode()))
    assert values_of(path) == ROWS


def test_a_list_under_the_name_of_lines_is_read(tmp_path):
    assert values_of(write(tmp_path / "rows.jsonl", json.dumps(ROWS, indent=1).encode())) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", gzip.compress(JSONL.encode(), mtime=0), r"a gzip archive; .*Put \.gz behind"),
        ("r.csv", zst(JSONL.encode()), r"a zstd archive; .* Put \.zst behind its name"),
        ("r.csv", b"PK\x03\x04...", r"an Excel sheet; .* save it as CSV"),
        ("r.jsonl", b"PAR1....PAR1", r"a Parquet table; .* end with \.parquet"),
        ("r.parquet", b"version https://git-lfs.github.com/spec/v1\n", r"Git LFS .* git lfs pull"),
        ("r.jsonl", b"<!DOCTYPE html><html>", r"a web page; .* Download the file itself"),
        ("r.jsonl", json.dumps(ROWS[0], indent=1).encode(), r"over several lines; .* jq -c"),
        ("r.json", json.dumps({"v": 1, "data": ROWS}).encode(), r"under 'data'; .*'data' to"),
    ],
)  # fmt: skip
def test_content_of_another_kind_than_the_name_says_is_refused_with_a_remedy(
    tmp_path, name, content, said
):
    with pytest.raises(DataError, match=said):
        read_file(write(tmp_path / name, content), "data.train")


def test_members_of_a_gzip_file_are_one_file(tmp_path):
    half = len(JSONL.splitlines(keepends=True)[0])
    packed = gzip.compress(JSONL[:half].encode()) + gzip.compress(JSONL[half:].encode())
    assert values_of(write(tmp_path / "rows.jsonl.gz", packed)) == ROWS


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(JSONL.encode(), mtime=0)[:-9]],
    ids=["another format", "cut short"],
)
def test_damaged_archive_is_refused_in_one_sentence(tmp_path, content):
    path = write(tmp_path / "rows.jsonl.gz", content)
    with pytest.raises(DataError, match=r"^data\.train: cannot read .*readable \.jsonl\.gz file"):
        read_file(path, "data.train")


def test_damaged_zst_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"^data\.train: cannot read "):
        read_file(write(tmp_path / "rows.jsonl.zst", b"no zst"), "data.train")


@pytest.mark.parametrize(
    "encode",
    [
        pytest.param(lambda text: text.encode("utf-8-sig"), id="utf-8-sig"),
        pytest.param(lambda text: text.encode("utf-16"), id="utf-16"),
        pytest.param(
            lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"), id="utf-16 big end first"
        ),
        pytest.param(lambda text: text.encode("utf-32"), id="utf-32"),
        pytest.param(lambda text: text.replace("\n", "\r\n\r\n").encode("utf-16"), id="crlf"),
    ],
)
def test_byte_order_mark_says_the_encoding(tmp_path, encode):
    assert values_of(write(tmp_path / "rows.jsonl", encode(JSONL))) == ROWS
    table = "prompt,completion\n" + "".join(f"{r['prompt']},{r['completion']}\n" for r in ROWS)
    assert values_of(write(tmp_path / "rows.csv", encode(table))) == ROWS


def test_line_in_another_encoding_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", JSONL.encode() + '{"text": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"line 6 is not UTF-8 .*Save the file as UTF-8"):
        read_file(path, "data.train")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", 'prompt;completion\n"a; b";c\nd;"e, f"\n'),
        ("rows.csv", "prompt\tcompletion\na; b\tc\nd\te, f\n"),
        ("rows.tsv", "prompt\tcompletion\na; b\tc\nd\te, f\n"),
        ("rows.csv", 'prompt,completion\na; b,c\n\n\r\nd,"e, f"\n'),
        ("rows.csv", 'sep=;\nprompt;completion\n"a; b";c\nd;e, f\n'),
        ("rows.csv", 'prompt|completion\na; b|c\nd|"e, f"\n'),
    ],
)
def test_separator_is_found(tmp_path, name, text):
    rows = [{"prompt": "a; b", "completion": "c"}, {"prompt": "d", "completion": "e, f"}]
    assert values_of(write(tmp_path / name, text)) == rows


def test_one_column_is_one_column_whatever_its_text_holds(tmp_path):
    path = write(tmp_path / "rows.csv", 'text\n"a, b; c"\n"d\n\ne ""f"""\n')
    assert values_of(path) == [{"text": "a, b; c"}, {"text": 'd\n\ne "f"'}]


def test_cells_and_lines_of_any_length_are_read(tmp_path):
    long = "x" * 5_000_000
    assert values_of(write(tmp_path / "a.csv", f"text,n\n{long},1\n")) == [
        {"text": long, "n": "1"}
    ]
    assert values_of(write(tmp_path / "a.jsonl", json.dumps({"text": long}))) == [{"text": long}]


def test_place_of_a_row_behind_a_cell_of_several_lines_is_its_last_line(tmp_path):
    path = write(tmp_path / "rows.csv", 'a,b\n"1\n2\n3",x\n4,5,6\n')
    assert [one.place for one in read_file(path, "f")] == [f"{path} line 4", f"{path} line 5"]


def test_column_named_twice_is_refused_and_columns_without_a_name_get_one(tmp_path):
    with pytest.raises(DataError, match=r"line 1 names the column 'a' more than once"):
        read_file(write(tmp_path / "rows.csv", "a,b,a\n1,2,3\n"), "data.train")
    path = write(tmp_path / "index.csv", ",,a\n0,1,2\n")
    assert values_of(path) == [{"unnamed 1": "0", "unnamed 2": "1", "a": "2"}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"a": ' + "9" * 5000 + "}", "holds a number of more than 4,300 digits"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "is nested more than 100 levels deep"),
        ('{"a": ' + "[" * 90_000 + "]" * 90_000 + "}", "is nested more than 100 levels deep"),
        ('{"a": 1', "is not JSON"),
        ("[1]", "is a list"),
        ("NaN", "is a float"),
    ],
)
def test_line_that_is_no_row_is_listed_and_the_others_are_read(tmp_path, line, problem):
    path = write(tmp_path / "rows.jsonl", f"{JSONL}{line}\n{JSONL}")
    found = read_file(path, "data.train")
    (bad,) = (one for one in found if isinstance(one, BadRow))
    assert len(found) == 11
    assert bad.place == f"{path} line 6"
    assert bad.problem.startswith(problem)


def test_numbers_and_characters_at_the_edge_of_json_are_values(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"a": 1e400, "b": "\\u0000 \u2028", "c": NaN}\n')
    (row,) = values_of(path)
    assert row["a"] == float("inf")
    assert row["b"] == "\0 \u2028"


def test_whole_json_that_is_too_deep_is_one_sentence(tmp_path):
    path = write(tmp_path / "rows.json", '[{"a": ' + "[" * 90_000 + "]" * 90_000 + "}]")
    with pytest.raises(DataError, match=r"rows\.json is nested more than 100 levels deep; allow"):
        read_file(path, "data.train")


def test_nested_columns_of_parquet_are_lists_and_mappings(tmp_path):
    turns = [{"role": "user", "content": "a", "meta": {"tags": ["x"], "n": None}}]
    pq.write_table(
        pa.Table.from_pylist([{"messages": turns, "when": None}]), tmp_path / "r.parquet"
    )
    assert values_of(tmp_path / "r.parquet") == [{"messages": turns, "when": None}]
    packed = write(tmp_path / "r.parquet.gz", gzip.compress((tmp_path / "r.parquet").read_bytes()))
    assert values_of(packed) == [{"messages": turns, "when": None}]


def test_list_in_a_cell_is_json_or_what_pandas_writes():
    assert parse_list('[{"a": null}]') == [{"a": None}]
    assert parse_list("[{'a': None, 'b': \"it's\"}]") == [{"a": None, "b": "it's"}]
    for text in ("hi", "", "{}", "[1", "[" * 100_000, "[f()]"):
        assert parse_list(text) is None


def test_value_may_be_nested_a_hundred_levels_deep():
    assert parse_json("[" * 100 + "]" * 100)
