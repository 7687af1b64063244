"""Sentences on a sweep's bases and rows, shared by all bases or by base."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator.errors import SweepSpecError
from orchestrator.preflight.data_report import inspect_inputs
from orchestrator.spec.sweep import SweepSpec, build_trial, parse_sweep
from tests.support.bases import DENSE, save_base, save_quantized
from tests.support.tiny import build_byte_tokenizer
from trainables.errors import BaseModelError, DataError

ROWS = [{"question": f"{n} plus one is", "answer": f" {n + 1}", "id": n} for n in range(60)]


def sweep(folder: Path, base: Path, **space: object) -> SweepSpec:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "name": "tiny",
        "base": {"model": str(base)},
        "data": {"train": "rows.jsonl", "max_tokens": 16},
        "optim": {"steps": 20},
        "space": {"lora.rank": {"choice": [2, 4]}, **space},
        "budget": {"trials": 2},
    }
    return parse_sweep(values, folder)


def test_rows_are_described_before_anything_is_started(tiny_base: Path, tmp_path: Path) -> None:
    found = inspect_inputs(sweep(tmp_path, tiny_base))
    assert found.lines[0].endswith(
        "prompt from 'question', completion from 'answer'; not used: 'id'."
    )
    assert any("rows are longer than data.max_tokens=16 and cut" in line for line in found.lines)
    assert json.loads(json.dumps(found.facts)) == found.facts
    assert list(found.facts) == [str(tiny_base)]


def test_what_differs_between_bases_names_them(tiny_base: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny_base, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8}))
    spec = sweep(tmp_path, tiny_base, **{"base.model": {"choice": [str(tiny_base), str(short)]}})
    assert [base.model for base in spec.bases] == [str(tiny_base), str(short)]
    lines = inspect_inputs(spec).lines
    assert sum(line.startswith("Rows are read as") for line in lines) == 1
    named = [line for line in lines if line.startswith("With /")]
    assert named
    assert all(line.startswith(f"With {short}: ") and "8 positions" in line for line in named)


def quantized(tiny_base: Path, folder: Path, **config: object) -> Path:
    """The tiny base as an nf4 checkpoint."""
    kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", **config}
    return save_quantized(tiny_base, folder / "quantized", build_byte_tokenizer(), **kind)


def test_a_quantized_checkpoint_is_searched_in_its_own_form(
    tiny_base: Path, tmp_path: Path
) -> None:
    spec = sweep(tmp_path, quantized(tiny_base, tmp_path))
    assert (spec.base.quantization, spec.base.double_quant) == ("nf4", False)
    trial = build_trial(spec, {"lora.rank": 2})
    assert trial.base == spec.base
    found = inspect_inputs(spec)
    assert "are stored in nf4 already" in found.lines[0]
    assert found.facts[spec.base.model]["prequantized"] is True


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"base.quantization": "none"}, r"^base\.quantization: got 'none', but .*stored in nf4"),
        (
            {"base.quantization": {"choice": ["nf4", "fp4"]}},
            r"^space\.base\.quantization: got 'fp4', but .* in nf4 already; allowed: nf4 for",
        ),
        (
            {"base.double_quant": {"choice": [True, False]}},
            r"^space\.base\.double_quant: got True; allowed: false for .*own files are quantized",
        ),
    ],
)
def test_one_checkpoint_is_never_searched_under_two_names(
    tiny_base: Path, tmp_path: Path, space: dict[str, object], message: str
) -> None:
    base = quantized(tiny_base, tmp_path)
    with pytest.raises(SweepSpecError, match=message):
        sweep(tmp_path, base, **space)


def test_of_two_bases_only_the_plain_one_is_tried_in_another_form(
    tiny_base: Path, tmp_path: Path
) -> None:
    models = [str(tiny_base), str(quantized(tiny_base, tmp_path))]
    forms = {"choice": ["nf4", "fp4"]}
    spec = sweep(
        tmp_path, tiny_base, **{"base.model": {"choice": models}, "base.quantization": forms}
    )
    tried = {
        (knobs["base.model"], knobs["base.quantization"])
        for knobs in spec.search_space.configurations()
    }
    assert tried == {(models[0], "nf4"), (models[0], "fp4"), (models[1], "nf4")}


def test_a_checkpoint_of_another_method_is_refused_as_a_base_not_as_a_knob(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "gptq"
    shutil.copytree(tiny_base, base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(SweepSpecError, match=r"^base\.model: .* quantized with GPTQ"):
        sweep(tmp_path, base)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"finals": {"forms": ["merged"]}}, r"^finals\.forms: got \['merged'\]; allowed: trained"),
        ({"register": {"form": "merged"}}, r"^register\.form: got 'merged'; allowed: trained"),
    ],
)
def test_forms_of_unquantized_weights_are_not_offered(
    tiny_base: Path, tmp_path: Path, sections: dict[str, object], message: str
) -> None:
    values = sweep(tmp_path, quantized(tiny_base, tmp_path)).to_dict()
    with pytest.raises(SweepSpecError, match=message):
        parse_sweep({**values, **sections}, tmp_path)


def test_layers_that_no_base_has_are_refused_and_those_of_another_are_told(
    tiny_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(SweepSpecError, match=r"did you mean q_proj\? Got 'q_prj'"):
        inspect_inputs(sweep(tmp_path, tiny_base, **{"lora.targets": {"choice": [["q_prj"]]}}))
    other = save_base(tmp_path / "gpt2", DENSE["gpt2, Conv1D"], "float32", build_byte_tokenizer())
    both = {
        "base.model": {"choice": [str(tiny_base), str(other)]},
        "lora.targets": {"choice": ["all-linear", ["q_proj"]]},
    }
    lines = inspect_inputs(sweep(tmp_path, tiny_base, **both)).lines
    (told,) = [line for line in lines if "lora.targets" in line]
    assert told.startswith(f"With {other}: lora.targets: did you mean c_proj? Got 'q_proj'")


def test_a_token_without_embeddings_is_told_before_anything_starts(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "grown"
    shutil.copytree(tiny_base, base)
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(["plus"])
    tokenizer.save_pretrained(base)
    with pytest.raises(
        DataError, match=r"^data\.train: a row has the token 'plus' with the id 26"
    ):
        inspect_inputs(sweep(tmp_path, base))


def test_chats_need_a_template_and_a_base_its_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "x"}
    chats = [{"messages": [{"role": "user", "content": f"{n}?"}, answer]} for n in range(60)]
    spec = sweep(tmp_path, tiny_base)
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    base = tmp_path / "bare"
    shutil.copytree(tiny_base, base)
    (base / "chat_template.jinja").unlink()
    values = {**spec.to_dict(), "base": {"model": str(base)}, "data": {"train": "chats.jsonl"}}
    with pytest.raises(DataError, match="chat template"):
        inspect_inputs(parse_sweep(values, tmp_path))
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(BaseModelError, match=r"^base\.model: the tokenizer of .* cannot be read"):
        inspect_inputs(parse_sweep(values, tmp_path))
