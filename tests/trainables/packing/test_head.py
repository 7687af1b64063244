"""Loss and scores by chunks: the same numbers, and never all logits at once."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.bases import DENSE, EXPERTS, VOCABULARY
from tests.support.plain_peft import adapter_of, largest_difference
from trainables.base.loading import load_base
from trainables.engine import Engine
from trainables.packing.head import PackedHead, find_finish
from trainables.packing.pack import Layout
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

KINDS = {**DENSE, **EXPERTS}
CHUNK = 5
"""Positions of a chunk in these tests; a batch has a dozen."""


def trial_on(base, data, compute="float32", form="none", **optim):
    return TrialSpec(
        base=BaseSpec(model=str(base), quantization=form, compute_dtype=compute),
        lora=LoraSpec(rank=4, dropout=0.1),
        optim=OptimSpec(**{"steps": 10, "batch_size": 4, "learning_rate": 3e-3, **optim}),
        data=DataSpec(train=str(data)),
        eval=EvalSpec(batch_size=8),
        seed=1,
    )


def seated(spec, chunk=None, neighbour=None):
    base = load_base(spec.base)
    engine = Engine(base) if chunk is None else Engine(base, chunk * VOCABULARY)
    if neighbour is not None:
        engine.join("neighbour", neighbour)
    engine.join("seat", spec)
    return engine


@pytest.mark.parametrize("name", KINDS)
def test_what_a_model_does_behind_its_head_is_known(base_of, name):
    engine = Engine(load_base(BaseSpec(model=str(base_of(name)), quantization="none")))
    assert engine._model._finish is not None


@pytest.mark.parametrize(
    "name",
    ["llama", "gemma 2, bounded logits", "cohere", "granite", "phi, LayerNorm", "gpt2, Conv1D"],
)
def test_chunks_train_and_score_as_one_piece_does(base_of, tiny_data, name):
    spec = trial_on(base_of(name), tiny_data)
    whole, parts = seated(spec), seated(spec, CHUNK)
    assert parts._passes("seat")[0].block.answers > 2 * CHUNK
    for _ in range(3):
        one, other = whole.step(["seat"])["seat"], parts.step(["seat"])["seat"]
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert largest_difference(adapter_of(whole, "seat"), adapter_of(parts, "seat")) < 1e-5
    one, other = whole.evaluate_rows("seat"), parts.evaluate_rows("seat")
    assert other.loss_sum == pytest.approx(one.loss_sum, rel=1e-5)
    assert (other.correct_tokens, other.answer_tokens) == (one.correct_tokens, one.answer_tokens)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_packed_seat_has_the_chunks_it_has_alone(base_of, tiny_data, compute):
    spec = trial_on(base_of("llama"), tiny_data, compute, "nf4")
    beside = replace(spec, optim=replace(spec.optim, batch_size=7), seed=2)
    alone, packed = seated(spec, CHUNK), seated(spec, CHUNK, beside)
    for _ in range(4):
        alone.step(["seat"])
        packed.step(["neighbour", "seat"])
    assert largest_difference(adapter_of(alone, "seat"), adapter_of(packed, "seat")) == 0.0


class Widest(TorchDispatchMode):
    """Looks for the tensor with most positions of the vocabulary, views of the head apart."""

    def __init__(self, engine):
        super().__init__()
        self.head = engine.base.model.get_output_embeddings().base.weight.data_ptr()
        self.positions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            is_wide = isinstance(one, torch.Tensor) and one.shape[-1:] == (VOCABULARY,)
            if is_wide and one.data_ptr() != self.head:
                self.positions = max(self.positions, one.numel() // VOCABULARY)
        return out


@pytest.mark.parametrize("name", ["llama", "gemma 2, bounded logits"])
def test_logits_of_more_than_a_chunk_never_exist(base_of, tiny_data, name):
    spec = trial_on(base_of(name), tiny_data, batch_size=8)
    engine, whole = seated(spec, 10), seated(spec)
    assert sum(batch.block.answers for batch in engine._passes("seat")) == 24
    with Widest(whole) as seen:
        whole.step(["seat"])
    assert seen.positions == 24
    for act in (lambda: engine.step(["seat"]), lambda: engine.evaluate("seat")):
        with Widest(engine) as seen:
            act()
        assert 5 <= seen.positions <= 10


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_an_unknown_finish_is_computed_from_whole_logits(base_of, tiny_data, compute):
    spec = trial_on(base_of("llama"), tiny_data, compute)
    known, unknown = seated(spec), seated(spec)
    unknown._model._finish = None
    for _ in range(3):
        known.step(["seat"])
        unknown.step(["seat"])
    assert largest_difference(adapter_of(known, "seat"), adapter_of(unknown, "seat")) == 0.0
    assert known.evaluate("seat") == unknown.evaluate("seat")


def test_a_finish_that_is_none_of_the_known_is_not_guessed():
    head = PackedHead(torch.nn.Linear(8, 11, bias=False), Layout())
    hidden = torch.randn(5, 8)

    class Config:
        final_logit_softcapping = 3.0
        logits_scaling = 2.0

    def found(finish):
        with torch.no_grad():
            return find_finish(Config, head, hidden, finish(head.logits(hidden)))

    with torch.no_grad():
        raw = head.logits(hidden)
        for finish in (
            lambda logits: logits,
            lambda logits: torch.tanh(logits / 3.0) * 3.0,
            lambda logits: logits / 2.0,
        ):
            known = found(finish)
            assert known is not None
            assert torch.equal(known(raw), finish(raw))
        assert found(lambda logits: logits.softmax(dim=-1)) is None
        assert found(lambda logits: logits * 1.7) is None
