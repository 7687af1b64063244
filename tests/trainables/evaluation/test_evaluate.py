"""Evaluation documents of adapters that were really trained."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch

from trainables.contract import EVALUATION_FORMAT, Formula
from trainables.errors import BundleError, SpecError
from trainables.evaluation.evaluate import evaluate_bundle, evaluate_rows, evaluate_served
from trainables.evaluation.measures import MEASURES, value_of
from trainables.evaluation.rows import evaluation_rows
from trainables.evaluation.serving import forms_of, load_served
from trainables.evaluation_spec import EvaluationSpec
from trainables.rows.data import load_splits
from trainables.spec import DataSpec
from trainables.training.bundle import read_manifest

WRITE = EvaluationSpec(max_new_tokens=6, batch_size=8, pattern=r"\S", choices=("w", "x", "y", "z"))


@pytest.fixture(scope="module")
def documents(train):
    trained = train("nf4")
    source = (trained.spec.data, "test")
    found = evaluate_bundle(trained.bundle, forms_of({"quantization": "nf4"}), source, WRITE)
    return {document["form"]: document for document in found}


@pytest.fixture(scope="module")
def served(train):
    return load_served(train("nf4").bundle, "trained")


def rows_of(served, source, how=WRITE):
    return evaluation_rows(served.manifest, served.tokenizer, source, how)


def test_trained_scores_are_those_of_the_engine(train, documents):
    trained = train("nf4")
    scores = trained.engine.evaluate_rows("seat", "test")
    examples = documents["trained"]["examples"]
    assert examples["loss_sum"] == pytest.approx(scores.loss_sum, abs=1e-5)
    assert examples["answer_tokens"] == list(scores.answer_tokens)
    assert examples["correct_tokens"] == list(scores.correct_tokens)
    measures = documents["trained"]["measures"]
    metrics = trained.engine.evaluate("seat", "test")
    assert measures["loss"]["value"] == pytest.approx(metrics["eval_loss"], abs=1e-5)
    assert measures["accuracy"]["value"] == metrics["eval_accuracy"]
    assert measures["token_accuracy"]["value"] == metrics["eval_token_accuracy"]


def test_forms_differ_as_their_weights_do(documents):
    loss = {form: document["examples"]["loss_sum"] for form, document in documents.items()}
    assert loss["merged"] == pytest.approx(loss["unquantized"], abs=1e-4)
    for one, other in (("trained", "unquantized"), ("merged", "requantized")):
        assert max(abs(a - b) for a, b in zip(loss[one], loss[other], strict=True)) > 1e-3


def test_a_document_says_what_was_measured_and_on_what(train, documents):
    trained = train("nf4")
    manifest = read_manifest(trained.bundle)
    rows = load_splits(trained.spec.data, trained.engine.base.tokenizer).test.rows
    for form, document in documents.items():
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert (document["format"], document["form"]) == (EVALUATION_FORMAT, form)
        assert document["adapter"] == manifest["digest"]
        assert document["data"]["digest"] == manifest["data"]["test"]
        assert document["data"]["rows"] == len(rows)
        assert {len(column) for column in document["examples"].values()} == {len(rows)}
        assert document["generation"] == {
            "max_new_tokens": 6,
            "pattern": r"\S",
            "choices": ["w", "x", "y", "z"],
            "metrics": None,
        }
        assert document["seconds"] > 0
        assert document["rows_per_s"] == pytest.approx(len(rows) / document["seconds"])
        assert document["peak_memory_gib"] > 0.05
        assert document["packages"]["torch"] == torch.__version__
    assert documents["trained"]["model_bytes"] < documents["merged"]["model_bytes"]


def test_every_measure_follows_from_the_columns(documents):
    document = documents["requantized"]
    assert set(document["measures"]) == set(MEASURES)
    for entry in document["measures"].values():
        formula = Formula(**{key: entry[key] for key in ("of", "per", "scale", "mode")})
        assert value_of(document["examples"], formula) == entry["value"]


def test_a_row_that_is_right_under_teacher_forcing_is_written_so(documents):
    for document in documents.values():
        examples = document["examples"]
        assert sum(examples["accuracy"]) > 0
        for is_right, is_match in zip(examples["accuracy"], examples["exact_match"], strict=True):
            assert is_match >= is_right
        for written, wanted, is_match in zip(
            examples["prediction"], examples["reference"], examples["exact_match"], strict=True
        ):
            assert (written.strip() == wanted.strip()) == bool(is_match)


@pytest.mark.parametrize("form", ["trained", "merged"])
def test_batches_of_one_and_of_eight_give_the_same(train, form):
    trained = train("nf4")
    served = load_served(trained.bundle, form)
    rows = rows_of(served, DataSpec(train=trained.spec.data.train))
    # Longer than the answers, with no end in sight: the untrained part of a completion, too.
    how = replace(WRITE, max_new_tokens=12)
    one, eight = (evaluate_served(served, rows, replace(how, batch_size=size)) for size in (1, 8))
    assert one["examples"]["prediction"] == eight["examples"]["prediction"]
    assert len(rows.rows) == 64
    assert one["examples"]["loss_sum"] == pytest.approx(eight["examples"]["loss_sum"], abs=1e-4)


def test_without_generation_nothing_is_written(served, train):
    rows = rows_of(served, (train("nf4").spec.data, "validation"), EvaluationSpec())
    document = evaluate_served(served, rows, EvaluationSpec())
    assert document["generation"] is None
    assert set(document["examples"]) == {
        "loss_sum", "answer_tokens", "answer_bytes", "correct_tokens", "accuracy",
    }  # fmt: skip
    assert set(document["measures"]) == {
        "loss", "perplexity", "bits_per_byte", "token_accuracy", "accuracy",
    }  # fmt: skip


def test_a_users_metric_has_a_column_and_a_measure(served, tmp_path):
    path = tmp_path / "own.py"
    path.write_text("def size(p, r):\n    return [len(one) for one in r]\nsize.mode = 'min'\n")
    how = EvaluationSpec(max_new_tokens=2, metrics=(f"{path}:size",))
    rows = ({"prompt": "a ->", "completion": " x"}, {"prompt": "b ->", "completion": " yes"})
    document = evaluate_served(served, rows_of(served, rows, how), how)
    assert document["examples"]["size"] == [2.0, 4.0]
    assert document["measures"]["size"] == {
        "value": 3.0,
        "of": "size",
        "per": None,
        "scale": "identity",
        "mode": "min",
    }


def test_a_loss_that_is_not_finite_is_null(train):
    trained = train("nf4")
    served = load_served(trained.bundle, "merged")
    with torch.no_grad():
        served.model.model.norm.weight.fill_(math.nan)
    document = evaluate_served(served, rows_of(served, (trained.spec.data, "test")), WRITE)
    json.dumps(document, allow_nan=False)
    assert set(document["examples"]["loss_sum"]) == {None}
    assert document["measures"]["loss"]["value"] is None
    assert document["measures"]["bits_per_byte"]["value"] is None
    assert document["measures"]["accuracy"]["value"] == 0


def test_scores_are_in_the_order_of_the_rows(served, train):
    rows = [row.encoded for row in rows_of(served, (train("nf4").spec.data, "test")).rows]
    forward = evaluate_rows(served.model, rows, 4)
    backward = evaluate_rows(served.model, rows[::-1], 3)
    assert forward.answer_tokens == backward.answer_tokens[::-1]
    assert forward.loss_sum == pytest.approx(backward.loss_sum[::-1], abs=1e-5)


def test_a_cut_answer_is_never_right(served):
    rows = rows_of(served, ({"prompt": "aaaa ->", "completion": " y" * 300},), EvaluationSpec())
    examples = evaluate_served(served, rows, EvaluationSpec())["examples"]
    assert examples["answer_tokens"] == [512 - 7]
    assert examples["accuracy"] == [0]


CHATS = tuple(
    {
        "messages": [
            {"role": "user", "content": word},
            {"role": "assistant", "content": word.upper()},
            {"role": "user", "content": f"{word}?"},
            {"role": "assistant", "content": "ok"},
        ]
    }
    for word in ("cat", "dog", "bird", "fish", "ant")
)


def test_chats_are_scored_on_every_answer_and_complete_the_last(train):
    data = DataSpec(train=CHATS, validation=CHATS[:2], test=CHATS[2:])
    trained = train("nf4", data=data)
    (document,) = evaluate_bundle(
        trained.bundle, ["trained"], (data, "test"), replace(WRITE, pattern=None, choices=())
    )
    scores = trained.engine.evaluate_rows("seat", "test")
    examples = document["examples"]
    assert examples["loss_sum"] == pytest.approx(scores.loss_sum, abs=1e-5)
    assert examples["answer_tokens"] == [5 + 3, 5 + 3, 4 + 3]
    assert examples["answer_bytes"] == [4 + 2, 4 + 2, 3 + 2]
    assert examples["reference"] == ["ok", "ok", "ok"]
    assert examples["prediction"] == ["ok", "ok", "ok"]
    assert document["data"]["prompt_style"] == "chat"
    assert document["data"]["template_digest"].startswith("sha256:")


def test_the_impossible_is_refused_before_a_model_is_loaded(train, tmp_path):
    trained = train("none")
    source = (trained.spec.data, "test")
    with pytest.raises(SpecError, match="form: got 'requantized'"):
        evaluate_bundle(trained.bundle, ["trained", "requantized"], source, WRITE)
    # Its adapter is gone: loading it would fail in another way.
    how = EvaluationSpec(max_new_tokens=2, metrics=("no_such_module:f",))
    with pytest.raises(SpecError, match="no_such_module"):
        evaluate_bundle(trained.bundle, ["trained"], source, how)
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "adapter_model.safetensors").unlink()
    with pytest.raises(BundleError, match="differs from its manifest"):
        evaluate_bundle(tmp_path / "bundle", ["trained"], source, WRITE)
