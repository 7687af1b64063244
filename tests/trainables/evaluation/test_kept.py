"""Adapters served one after another on a kept base, against each one loaded anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.bases import DENSE, save_base
from tests.support.bundles import file_record
from tests.support.tiny import build_byte_tokenizer
from trainables.contract import ADAPTER_WEIGHTS, SERVING_FORMS, identity_digest
from trainables.engine import build_engine
from trainables.evaluation.evaluate import BundleEvaluator, evaluate_served
from trainables.evaluation.kept import KeptBases
from trainables.evaluation.rows import evaluation_rows
from trainables.evaluation.serving import forms_of, load_served, load_served_tokenizer
from trainables.evaluation_spec import EvaluationSpec
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.bundle import read_manifest

ROWS = tuple({"prompt": f"{letter * (2 + place)} ->", "completion": f" {letter}x"}
             for place, letter in enumerate("abcdefghij"))  # fmt: skip
HOW = EvaluationSpec(max_new_tokens=5, batch_size=4)
MEASURED = ("seconds", "rows_per_s", "tokens_per_s", "peak_memory_gib")
TWO = (LoraSpec(rank=4, alpha=16), LoraSpec(rank=2, alpha=8, targets="attention", rslora=True))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Train short adapters on a tiny base of an architecture."""
    bases: dict[str, Path] = {}

    def train(
        architecture: str, quantization: str, loras: tuple[LoraSpec, ...] = TWO, **base: str
    ) -> list[Path]:
        if architecture not in bases:
            folder = tmp_path_factory.mktemp("base")
            tokenizer = build_byte_tokenizer()
            bases[architecture] = save_base(folder, DENSE[architecture], "float32", tokenizer)
        found = []
        spec = BaseSpec(model=str(bases[architecture]), quantization=quantization, **base)
        engine = build_engine(spec)
        for number, lora in enumerate(loras):
            trial = TrialSpec(
                base=spec,
                lora=lora,
                optim=OptimSpec(steps=3, batch_size=4, learning_rate=5e-2),
                data=DataSpec(train=ROWS, validation=ROWS[:2], test=ROWS[2:]),
                seed=number,
            )
            engine.join("seat", trial)
            for _ in range(3):
                engine.step(["seat"])
            found.append(tmp_path_factory.mktemp("adapter") / "bundle")
            engine.export("seat", found[-1], {})
            engine.leave("seat")
        return found

    return train


def without_times(document):
    return {name: value for name, value in document.items() if name not in MEASURED}


def evaluated_fresh(bundle, form, how=HOW):
    served = load_served(bundle, form)
    rows = evaluation_rows(served.manifest, served.tokenizer, ROWS, how)
    return without_times(evaluate_served(served, rows, how))


def evaluated(evaluator, bundle, form, how=HOW, later=SERVING_FORMS):
    return without_times(evaluator.evaluate(bundle, form, ROWS, how, later=later))


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


CASES = [
    ("llama", "nf4", {}),
    ("llama", "fp4", {"compute_dtype": "bfloat16"}),
    ("llama, biases, untied head", "int8", {}),
    ("qwen3, q/k norm", "nf4", {"compute_dtype": "float32"}),
    ("gpt2, Conv1D", "nf4", {"compute_dtype": "float32"}),
    ("gpt2, Conv1D", "none", {}),
    ("gemma", "none", {"compute_dtype": "bfloat16"}),
    ("gemma 3, windows, q/k norm", "fp4", {}),
    ("phi 3, longrope", "nf4", {}),
]


@pytest.mark.parametrize(("architecture", "quantization", "base"), CASES)
def test_documents_are_those_of_fresh_loads(adapters, architecture, quantization, base):
    first, second = adapters(architecture, quantization, **base)
    # Completions of this base would cross the length at which its frequencies change.
    how = HOW if "longrope" not in architecture else replace(HOW, max_new_tokens=0)
    evaluator = BundleEvaluator()
    for form in forms_of({"quantization": quantization}):
        expected = {one: evaluated_fresh(one, form, how) for one in (first, second)}
        assert expected[first]["examples"]["loss_sum"] != expected[second]["examples"]["loss_sum"]
        for bundle in (first, second, first):
            assert evaluated(evaluator, bundle, form, how) == expected[bundle], form


def test_dora_and_plain_adapters_share_a_base(adapters):
    dora = LoraSpec(rank=4, alpha=16, dora=True)
    bundles = adapters("llama", "nf4", (dora, TWO[1], dora))
    evaluator = BundleEvaluator()
    for form in SERVING_FORMS:
        for bundle in bundles:
            found = evaluated(evaluator, bundle, form)
            assert found == evaluated_fresh(bundle, form), (form, bundle)


def test_each_base_is_loaded_once_for_all_adapters(adapters):
    bundles = adapters("llama", "nf4", (*TWO, LoraSpec(rank=8, alpha=8)))
    evaluator = BundleEvaluator()
    counts = []
    for form in SERVING_FORMS:
        for bundle in bundles:
            evaluated(evaluator, bundle, form)
            counts.append(evaluator.loads)
    assert counts == [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("form", ["trained", "merged"])
def test_the_base_is_as_it_was_loaded(adapters, quantization, form):
    bundle, _ = adapters("gpt2, Conv1D", quantization)
    bases = KeptBases(torch.device("cpu"))
    beside = "unquantized" if (form, quantization) == ("merged", "nf4") else "trained"
    with bases.serve(bundle, beside) as served:
        model = served.model.get_base_model()
    before = weights_of(model)
    with bases.serve(bundle, form) as served:
        assert bases.loads == 1
        changed = served.model.get_base_model() if form == "trained" else served.model
        if form == "merged":
            now = changed.state_dict()
            assert any(not torch.equal(now[name], before[name]) for name in before)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not hasattr(model, "peft_config")


def test_requantized_alone_is_what_it_is_behind_merged(adapters):
    first, second = adapters("qwen3, q/k norm", "nf4")
    evaluator = BundleEvaluator()
    for bundle in (first, second):
        assert evaluated(evaluator, bundle, "requantized", later=()) == evaluated_fresh(
            bundle, "requantized"
        )


def test_a_form_that_fails_leaves_no_changed_base(adapters, tmp_path):
    metric = tmp_path / "failing.py"
    metric.write_text("def failing(p, r):\n    raise ValueError('as asked')\n")
    failing = replace(HOW, metrics=(f"{metric}:failing",))
    first, second = adapters("llama", "nf4")
    evaluator = BundleEvaluator()
    for form in SERVING_FORMS:
        loads = evaluator.loads
        with pytest.raises(ValueError, match="as asked"):
            evaluated(evaluator, first, form, failing)
        assert evaluated(evaluator, second, form) == evaluated_fresh(second, form)
        assert evaluator.loads >= loads + 1


def test_an_adapter_that_replaces_weights_of_the_base_is_not_served_on_a_kept_one(adapters):
    first, second = adapters("llama", "none")
    weights = load_file(first / ADAPTER_WEIGHTS)
    name = "base_model.model.model.embed_tokens.weight"
    weights[name] = torch.randn(261, 64)
    save_file(weights, first / ADAPTER_WEIGHTS)
    record = json.loads((first / "manifest.json").read_text())
    record["files"][ADAPTER_WEIGHTS] = file_record(first / ADAPTER_WEIGHTS)
    record["digest"] = identity_digest(record)
    (first / "manifest.json").write_text(json.dumps(record))
    expected = evaluated_fresh(second, "trained")
    evaluator = BundleEvaluator()
    for form in ("trained", "merged"):
        assert evaluated(evaluator, first, form) == evaluated_fresh(first, form)
        assert evaluated(evaluator, second, "trained") == expected


def test_bases_of_several_kinds_follow_each_other(adapters):
    bundles = [
        adapters("llama", "nf4")[0],
        adapters("llama", "fp4")[0],
        adapters("gemma", "none", compute_dtype="float32")[0],
        adapters("llama", "nf4")[0],
    ]
    evaluator = BundleEvaluator()
    for form in ("merged", "trained"):
        for bundle in bundles:
            assert evaluated(evaluator, bundle, form) == evaluated_fresh(bundle, form)
    # Unquantized Llama, Gemma and Llama again; in their stored forms each anew.
    assert evaluator.loads == 3 + 4


def test_rotary_frequencies_that_grew_do_not_reach_the_next_adapter(adapters):
    first, second = adapters("dynamic rope", "none")
    long = ({"prompt": "a" * 90 + " ->", "completion": " ax"},)
    evaluator = BundleEvaluator()
    expected = evaluated_fresh(second, "trained")
    evaluator.evaluate(first, "trained", long, EvaluationSpec())
    assert evaluated(evaluator, second, "trained") == expected


def test_other_rows_are_encoded_anew(adapters):
    bundle, _ = adapters("llama", "none")
    evaluator = BundleEvaluator()
    evaluated(evaluator, bundle, "trained")
    found = evaluator.evaluate(bundle, "trained", ROWS[:3], HOW)
    assert found["data"]["rows"] == 3
    assert (
        evaluator.evaluate(bundle, "trained", ROWS, replace(HOW, max_rows=2))["data"]["rows"] == 2
    )


@pytest.mark.parametrize("has_room", [True, False])
def test_without_room_for_copies_bases_are_loaded_anew(adapters, has_room):
    first, second = adapters("llama", "nf4")
    bases = KeptBases(torch.device("cpu"), has_room=lambda size: has_room)
    rows = evaluation_rows(*manifest_and_tokenizer(first), ROWS, HOW)
    loads = []
    for form in ("merged", "requantized"):
        for bundle in (first, second):
            with bases.serve(bundle, form, later=SERVING_FORMS) as served:
                found = without_times(evaluate_served(served, rows, HOW))
                assert (served.spare_bytes > 0) == (has_room and form == "merged")
            del served
            assert found == evaluated_fresh(bundle, form)
            loads.append(bases.loads)
    assert loads == ([1, 1, 2, 2] if has_room else [1, 2, 3, 4])


def manifest_and_tokenizer(bundle):
    manifest = read_manifest(bundle)
    return manifest, load_served_tokenizer(manifest)
