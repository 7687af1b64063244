"""Every optimizer against the same one under plain PEFT, and its state through a checkpoint."""

import warnings
from dataclasses import replace

import pytest
import torch

from tests.support.plain_peft import OPTIMIZERS, adapter_of, largest_difference, train_with_peft
from trainables.engine import build_engine
from trainables.errors import SpecError, StateError
from trainables.spec import BaseSpec, DataSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.optim import build_optimizer
from trainables.training.pages import PagedAdamW, free_pages
from trainables.training.state import load_state, save_state

BLOCKWISE = [name for name in OPTIMIZERS if name.endswith("_8bit")]


@pytest.fixture
def build_spec(tiny_base, tiny_data):
    def build(optimizer, **knobs):
        # At rank 64, every matrix of this base has 4,096 weights or more, the least for 8 bits.
        return TrialSpec(
            base=BaseSpec(model=str(tiny_base), quantization="nf4", compute_dtype="float32"),
            lora=LoraSpec(rank=64, targets=("q_proj", "down_proj"), dropout=0.1),
            optim=OptimSpec(
                **{
                    "steps": 8,
                    "batch_size": 4,
                    "optimizer": optimizer,
                    "learning_rate": 1e-3,
                    "weight_decay": 0.1,
                    "loraplus_ratio": 2,
                    "beta2": 0.98,
                    **knobs,
                }
            ),
            data=DataSpec(train=str(tiny_data)),
        )

    return build


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_packed_seat_equals_plain_peft_with_the_same_optimizer(build_spec, optimizer):
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: on CUDA, PEFT's own kernels and dropout stream are others")
    spec = build_spec(optimizer)
    engine = build_engine(spec.base)
    engine.join("neighbour", build_spec("adamw_8bit", learning_rate=3e-3))
    engine.join("seat", spec)
    for _ in range(8):
        engine.step(["neighbour", "seat"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes: no memory is paged on a CPU
        expected = train_with_peft(spec, 8)
    assert largest_difference(adapter_of(engine, "seat"), expected) == 0.0


def test_the_optimizers_differ_from_each_other(build_spec):
    trained = {}
    for optimizer in ("adamw", "adamw_8bit", "lion", "lion_8bit"):
        engine = build_engine(build_spec(optimizer).base)
        engine.join("seat", build_spec(optimizer))
        for _ in range(3):
            engine.step(["seat"])
        trained[optimizer] = adapter_of(engine, "seat")
    names = list(trained)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            assert largest_difference(trained[name], trained[other]) > 0.0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_checkpoint_goes_on_in_another_engine_as_if_nothing_happened(
    build_spec, optimizer, tmp_path
):
    spec = build_spec(optimizer)
    engine, other = build_engine(spec.base), build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(3):
        engine.step(["seat"])
    save_state(engine.snapshot("seat"), tmp_path)
    other.join("moved", spec, load_state(tmp_path))
    for _ in range(3):
        engine.step(["seat"])
        other.step(["moved"])
    here, there = engine.snapshot("seat"), other.snapshot("moved")
    assert here.tensors.keys() == there.tensors.keys()
    assert all(torch.equal(here.tensors[name], there.tensors[name]) for name in here.tensors)


@pytest.mark.parametrize("optimizer", BLOCKWISE)
def test_moments_of_8_bits_take_a_quarter(build_spec, optimizer):
    def moment_bytes(name):
        engine = build_engine(build_spec(name).base)
        engine.join("seat", build_spec(name))
        engine.step(["seat"])
        tensors = engine.snapshot("seat").tensors
        leaves = ("/a", "/b", "/magnitude")
        return sum(t.nbytes for key, t in tensors.items() if not key.endswith(leaves))

    whole = {"adamw_8bit": "adamw", "paged_adamw_8bit": "adamw"}.get(optimizer, "lion")
    # One byte for each weight, and four for each block of 256.
    assert moment_bytes(optimizer) == moment_bytes(whole) / 4 * (1 + 4 / 256)


def test_the_moments_of_another_optimizer_are_refused(build_spec):
    engine = build_engine(build_spec("adamw").base)
    engine.join("seat", build_spec("adamw"))
    engine.step(["seat"])
    state = replace(engine.snapshot("seat"), spec=build_spec("lion"))
    with pytest.raises(StateError, match=r"exp_avg, exp_avg_sq; allowed: state1 of Lion32bit"):
        engine.join("other", build_spec("lion"), state)
    assert engine.seats == ("seat",)


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
    with pytest.raises(SpecError, match=r"optim\.optimizer.*adamw_8bit"):
        OptimSpec(steps=1, optimizer="adamw_8bits")


def test_paged_memory_of_a_seat_that_was_left_serves_the_next_one():
    spec = OptimSpec(steps=1, optimizer="paged_adamw")
    made = []

    class OnAGpu(PagedAdamW):  # as on a GPU, where bitsandbytes marks what it pages
        def get_state_buffer(self, parameter, dtype=torch.float32):
            moment = super().get_state_buffer(parameter, dtype)
            if not hasattr(moment, "is_paged"):
                moment.is_paged = True
                made.append(moment)
            return moment

        def prefetch_state(self, parameter):
            """Nothing to move on a CPU."""

    def train(shape):
        weights = [torch.nn.Parameter(torch.ones(shape)) for _ in range(2)]
        optimizer = OnAGpu([{"params": weights}], lr=0.1, betas=(spec.beta1, spec.beta2))
        optimizer._cpu_paged_warned = True
        for weight in weights:
            weight.grad = torch.full(shape, 0.5)
        optimizer.step()
        free_pages(optimizer)
        return [weight.detach().clone() for weight in weights]

    first, again = train((30, 7)), train((30, 7))
    assert len(made) == 4  # two moments of two weights
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    train((7, 30))
    assert len(made) == 8


def test_nothing_is_paged_on_a_cpu():
    weights = [torch.nn.Parameter(torch.ones(400, 400))]
    optimizer = build_optimizer(weights, [], OptimSpec(steps=1, optimizer="paged_adamw_8bit"))
    weights[0].grad = torch.ones(400, 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert type(optimizer).__name__ == "AdamW8bit"
