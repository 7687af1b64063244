"""Sizes come from files alone: a folder, a header of a .gguf file, the hub's cache."""

import json
import subprocess
import sys

import pytest

from tests.support import measured_bytes as measured
from tests.support.bases import DENSE, save_base
from tests.support.gguf_base import save_gguf_base
from trainables.engine import build_engine
from trainables.errors import BaseModelError
from trainables.memory.described import architecture_of, built_base_bytes, is_known
from trainables.memory.stored_bytes import base_bytes, form_of
from trainables.spec import BaseSpec


def test_a_folder_is_read_without_torch(tiny_base):
    program = (
        "import sys; from trainables.memory.described import architecture_of; "
        "from trainables.memory.verdict import MemoryModel; "
        "from trainables.spec import BaseSpec; "
        f"base = BaseSpec(model={str(tiny_base)!r}); "
        "print(architecture_of(base).hidden, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["64", "False"]


def test_a_gguf_file_has_the_sizes_of_the_model_it_becomes(tmp_path, byte_tokenizer):
    base = save_gguf_base(tmp_path / "base.gguf")
    spec = BaseSpec(model=str(base), quantization="nf4", compute_dtype="float32")
    shape = architecture_of(spec)
    engine = build_engine(spec)
    assert list(shape.named_linears()) == list(engine._model.linears)
    expected = base_bytes(shape, form_of(spec, automatic=4))
    assert expected == pytest.approx(measured.base_bytes(engine), rel=0.05)


@pytest.mark.parametrize("name", ["olmo 2", "phi, LayerNorm", "opt"])
@pytest.mark.parametrize("form", ["nf4", "int8", "none"])
def test_the_base_of_an_unknown_kind_is_counted_from_the_built_model(
    tmp_path, byte_tokenizer, name, form
):
    folder = save_base(tmp_path / "base", DENSE[name], "float32", byte_tokenizer)
    spec = BaseSpec(model=str(folder), quantization=form, compute_dtype="float32")
    assert not is_known(spec)
    with pytest.raises(BaseModelError, match="memory is not known"):
        architecture_of(spec)
    expected = built_base_bytes(spec, form_of(spec, automatic=4))
    assert expected == pytest.approx(measured.base_bytes(build_engine(spec)), rel=0.05)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"model_type": "llama"})])
def test_a_folder_that_tells_nothing_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(BaseModelError, match=r"config\.json"):
        architecture_of(BaseSpec(model=str(tmp_path)))


def test_a_missing_base_is_refused(tmp_path):
    for model in (str(tmp_path / "gone"), str(tmp_path / "gone.gguf")):
        assert not is_known(BaseSpec(model=model))
        with pytest.raises(BaseModelError, match=r"base\.model"):
            architecture_of(BaseSpec(model=model))
