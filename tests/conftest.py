"""Parts that many tests share: a tiny random base model with its tokenizer, and tiny data."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 bytes and five special tokens, no merges."""
    specials = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=specials[2:],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_tiny_llama(hidden: int = 64, layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of about 130 thousand weights, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=261,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,  # a tied head of the usual 0.02 could never be sure of a token
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template."""
    return build_byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random base model and its tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    build_tiny_llama().save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 64 prompt/completion rows that a tiny model can learn."""
    path = tmp_path_factory.mktemp("tiny-data") / "rows.jsonl"
    rows = [
        {"prompt": f"{'abcdefgh'[i % 8] * (3 + i % 5)} ->", "completion": f" {'xyzw'[i % 4]}"}
        for i in range(64)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the base cache out of the home folder; set before Ray's processes inherit it."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORCHESTRA_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that leads to a real S3 server; it holds one bucket, `bucket`."""
    folder = tmp_path_factory.mktemp("s3")
    (folder / "data" / "bucket").mkdir(parents=True)
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    log = folder / "log.txt"
    command = [str(rclone), "serve", "s3", "--config", "/dev/null", "--log-file", str(log)]
    command += ["--auth-key", "key,a-long-secret", "--addr", "127.0.0.1:0", str(folder / "data")]
    with subprocess.Popen(command) as server:
        try:
            yield {
                "AWS_ENDPOINT_URL": _address_in(log),
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "a-long-secret",
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        finally:
            server.terminate()


def _address_in(log: Path) -> str:
    """Where the server says that it listens."""
    for _ in range(300):
        said = re.search(r"http://127\.0\.0\.1:\d+", log.read_text() if log.exists() else "")
        if said is not None:
            return said[0]
        time.sleep(0.1)
    pytest.fail(f"no S3 server came up: {log}")


@pytest.fixture
def s3_location(s3_server: dict[str, str]) -> Iterator[str]:
    """An empty place in a bucket, with the environment that leads there."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        yield f"s3://bucket/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of either kind."""
    if request.param == "local":
        return str(tmp_path / "location")
    remote: str = request.getfixturevalue("s3_location")
    return remote


def _module_beside(name: str) -> ModuleType:
    """A module of this folder, which is not on the path lest `registry` here hides the package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def servers() -> ModuleType:
    """`servers.py`: how PostgreSQL, MLflow and a failing proxy are started."""
    return _module_beside("servers")


@pytest.fixture(scope="session")
def pages() -> ModuleType:
    """`pages.py`: MLflow's pages in a browser."""
    return _module_beside("pages")


@pytest.fixture(scope="session")
def shared_postgres(servers: ModuleType) -> Iterator[Any]:
    """A real PostgreSQL (`servers.Postgres`); `create(name)` makes a database in it."""
    programs = servers.find_postgres()
    if programs is None:
        if os.environ.get("CI"):
            pytest.fail(servers.POSTGRES_MISSING)
        pytest.skip(servers.POSTGRES_MISSING)
    with servers.postgres(programs) as server:
        yield server


@pytest.fixture(scope="session")
def shared_server(
    servers: ModuleType,
    shared_postgres: Any,
    s3_server: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A real MLflow server (`servers.MlflowServer`) for all tests marked `server`.

    Its runs, models and users are in PostgreSQL, its artifacts go through it to S3; whoever comes
    needs a name and a password. It starts in 20 to 90 seconds, so there is one.

        `shared_server.address`, `.admin.environment`
        `shared_server.add_user("eve", {("experiment", "3"): "EDIT"}).environment`
    """
    databases = (shared_postgres.create("mlflow"), shared_postgres.create("users"))
    folder = tmp_path_factory.mktemp("mlflow-server")
    with servers.mlflow_server(folder, databases, "s3://bucket/mlflow", extra=s3_server) as server:
        yield server


@pytest.fixture
def as_admin(shared_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the shared server, for a client that is its admin during this test."""
    for name, value in shared_server.admin.environment.items():
        monkeypatch.setenv(name, value)
    address: str = shared_server.address
    return address
