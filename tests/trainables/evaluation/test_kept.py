"""Adapters served one after another on a kept base, against each one loaded anew."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.bases import DENSE, save_base
from tests.support.tiny import build_byte_tokenizer
from trainables.engine import build_engine
from trainables.errors import BundleError, SpecError
from trainables.evaluation import kept
from trainables.evaluation.evaluate import BundleEvaluator, evaluate_served
from trainables.evaluation.kept import KeptBases
from trainables.evaluation.rows import evaluation_rows
from trainables.evaluation.serving import forms_of, load_served
from trainables.evaluation_spec import EvaluationSpec
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec

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


def fresh(bundle, form):
    served = load_served(bundle, form)
    rows = evaluation_rows(served.manifest, served.tokenizer, ROWS, HOW)
    return without_times(evaluate_served(served, rows, HOW))


def one_after_another(evaluator, bundles, forms):
    """Documents by form and place of the bundle, form by form."""
    return {
        (form, place): without_times(
            evaluator.evaluate(bundle, form, ROWS, HOW, later=forms[forms.index(form) :])
        )
        for form in forms
        for place, bundle in enumerate(bundles)
    }


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
    bundles = adapters(architecture, quantization, **base)
    forms = forms_of({"quantization": quantization})
    how = HOW if "longrope" not in architecture else replace(HOW, max_new_tokens=0)
    evaluator = BundleEvaluator()
    for form in forms:
        for bundle in (*bundles, bundles[0]):  # the first once more, behind the other
            served = load_served(bundle, form)
            rows = evaluation_rows(served.manifest, served.tokenizer, ROWS, how)
            expected = without_times(evaluate_served(served, rows, how))
            del served
            found = evaluator.evaluate(bundle, form, ROWS, how, later=forms)
            assert without_times(found) == expected, form
