"""The batched engine against the exact one: the same but for rounding, and seats apart."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.plain_peft import adapter_of, largest_difference
from trainables.engine import Engine, build_engine
from trainables.packing.batched import BatchedLinear
from trainables.packing.kernels import Branch, PackedLinear
from trainables.packing.pack import Block, Dropout, Layout
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.state import load_state, save_state

STEPS = 20
FORMS = ["none", "nf4"]

# ------------------------------------------------------------------------------------ one layer

BLOCKS = {"equal": [(2, 4)] * 4, "ragged": [(2, 4), (1, 9), (3, 70), (2, 4)]}
"""Rows and length of each seat's block."""


def build_layers(
    blocks: list[tuple[int, int]], *, dropout: float, targeted: str = "abcd"
) -> tuple[PackedLinear, BatchedLinear]:
    """The same float64 layer for four seats of several ranks, exact and batched."""
    torch.manual_seed(0)
    base = nn.Linear(24, 40).double().requires_grad_(False)
    layout = Layout(
        is_batched=True,
        blocks=tuple(
            Block(
                seat=seat,
                rows=rows,
                length=length,
                answers=1,
                dropout=Dropout(key=(number, 0, 0), rows=rows, length=length),
            )
            for number, (seat, (rows, length)) in enumerate(zip("abcd", blocks, strict=True))
        ),
    )
    layers = PackedLinear(base, layout), BatchedLinear(base, layout)
    ranks = dict(zip("abcd", (4, 16, 40, 3), strict=True))
    for seat in targeted:
        rank = ranks[seat]
        a, b = torch.randn(rank, 24).double(), torch.randn(40, rank).double()
        magnitude = torch.rand(40).double() if seat == "d" else None
        own = Branch("layer", a, b, 1.7 / rank, dropout if seat in "bd" else 0.0, magnitude)
        layers[0].branches[seat], layers[1].branches[seat] = own, copy.deepcopy(own)
    return layers


def gradients(layer: PackedLinear, x: torch.Tensor, weights: torch.Tensor) -> dict[str, object]:
    """Output of a layer and every gradient of its weighted sum; two passes."""
    x = x.clone().requires_grad_()
    for _ in range(2):
        y = layer(x)
        (y * weights).sum().backward()
    found = {"y": y.detach(), "x": x.grad}
    for seat, branch in layer.branches.items():
        found |= {f"{seat}/{name}": each.grad for name, each in branch.named_parameters()}
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("targeted", ["abcd", "ac", "d"])
def test_a_layer_is_the_exact_one_but_for_the_order_of_sums(blocks, dropout, targeted):
    layers = build_layers(blocks, dropout=dropout, targeted=targeted)
    tokens = sum(rows * length for rows, length in blocks)
    x, weights = torch.randn(1, tokens, 24).double(), torch.randn(1, tokens, 40).double()
    exact, batched = (gradients(layer, x, weights) for layer in layers)
    assert exact.keys() == batched.keys()
    for name, one in exact.items():
        assert (one - batched[name]).abs().max() <= 1e-10 * max(1.0, one.abs().max()), name


def test_a_first_layer_whose_input_has_no_gradient_learns():
    _, layer = build_layers(BLOCKS["equal"], dropout=0.0)
    layer(torch.randn(1, 32, 24).double()).sum().backward()
    assert all(branch.b.grad.abs().max() > 0 for branch in layer.branches.values())


def test_a_neighbours_infinity_stays_its_own():
    _, layer = build_layers(BLOCKS["ragged"], dropout=0.3)
    x, weights = torch.randn(1, 235, 24).double(), torch.randn(1, 235, 40).double()
    calm = gradients(layer, x, weights)
    for branch in layer.branches.values():
        branch.zero_grad()
    x[0, 8] = math.inf  # the first token of seat b
    found = gradients(layer, x, weights)
    for name in ("a/a", "a/b", "c/a", "c/b", "d/a", "d/b", "d/magnitude"):
        assert torch.equal(found[name], calm[name]), name
    assert not found["b/a"].isfinite().all()


def test_rows_that_are_not_the_packs_tokens_are_refused():
    _, layer = build_layers(BLOCKS["equal"], dropout=0.0)
    with pytest.raises(ValueError, match="gets 31 rows of a pack of 32 tokens"):
        layer(torch.randn(1, 31, 24).double())


# ---------------------------------------------------------------------------------- the engine


@pytest.fixture
def mixed(tiny_base: Path, tiny_data: Path) -> Callable[..., dict[str, TrialSpec]]:
    """Trials that differ in everything a trial may differ in."""

    def build(form: str, compute_dtype: str = "float32") -> dict[str, TrialSpec]:
        base = BaseSpec(model=str(tiny_base), quantization=form, compute_dtype=compute_dtype)

        def trial(seed: int, lora: dict, **optim) -> TrialSpec:
            return TrialSpec(
                base=base,
                lora=LoraSpec(**lora),
                optim=OptimSpec(**{"steps": 40, "batch_size": 4, "learning_rate": 1e-3, **optim}),
                data=DataSpec(train=str(tiny_data)),
                eval=EvalSpec(every=5, batch_size=8),
                seed=seed,
            )

        return {
            "attention": trial(1, {"rank": 4, "alpha": 8, "targets": "attention"}),
            "dropout": trial(
                2,
                {"rank": 8, "targets": ("q_proj", "down_proj"), "dropout": 0.2},
                weight_decay=0.1,
                schedule="cosine",
                warmup_steps=3,
                loraplus_ratio=4,
            ),
            "micro": trial(
                3,
                {"rank": 3, "targets": "mlp", "rslora": True},
                batch_size=6,
                micro_batch_size=2,
                max_grad_norm=0.1,
                schedule="constant",
            ),
            "wide": trial(4, {"rank": 32}, gradient_checkpointing=True, eps=1e-6, beta2=0.99),
            "dora": trial(5, {"rank": 4, "dora": True, "dropout": 0.1}),
            "8 bits": trial(6, {"rank": 64}, optimizer="adamw_8bit"),
            "lion": trial(7, {"rank": 8, "init": "orthogonal"}, optimizer="lion"),
        }

    return build


def build(specs: dict[str, TrialSpec], kind: str) -> Engine:
    engine = build_engine(next(iter(specs.values())).base, kind)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    return engine


def steps(engine: Engine, seats: list[str], count: int) -> None:
    for _ in range(count):
        engine.step(seats)


@pytest.mark.parametrize("form", FORMS)
def test_trials_are_the_exact_engines_but_for_rounding(mixed, form):
    specs = mixed(form)
    exact, batched = build(specs, "exact"), build(specs, "batched")
    for _ in range(STEPS):
        ours, others = exact.step(list(specs)), batched.step(list(specs))
    differences = {}
    for seat, spec in specs.items():
        assert others[seat].loss == pytest.approx(ours[seat].loss, abs=1e-4)
        assert (others[seat].step, others[seat].tokens) == (STEPS, ours[seat].tokens)
        # The sign of a tiny number decides the whole update of Lion, and an 8-bit moment rounds.
        bound = 1e-4 if spec.optim.optimizer == "adamw" else 2 * STEPS * spec.optim.learning_rate
        found = largest_difference(adapter_of(exact, seat), adapter_of(batched, seat))
        differences[seat] = found
        assert found <= bound, seat
    assert max(differences.values()) > 0  # it is another engine


def test_in_bfloat16_it_is_as_close_to_float32_as_the_exact_engine(mixed):
    """And closer to the exact engine than either is to float32."""
    trained = {}
    for kind, dtype in (("exact", "float32"), ("exact", "bfloat16"), ("batched", "bfloat16")):
        specs = mixed("nf4", dtype)
        adamw = [seat for seat, spec in specs.items() if spec.optim.optimizer == "adamw"]
        engine = build({seat: specs[seat] for seat in adamw}, kind)
        steps(engine, adamw, STEPS)
        trained[kind, dtype] = {seat: adapter_of(engine, seat) for seat in adamw}
    true, exact, batched = trained.values()
    for seat in true:
        cost = root_mean_square(exact[seat], true[seat])
        assert root_mean_square(batched[seat], true[seat]) <= 1.1 * cost, seat
        assert root_mean_square(batched[seat], exact[seat]) <= 0.75 * cost, seat


def root_mean_square(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return torch.cat([(one[name] - other[name]).flatten() for name in one]).square().mean().sqrt()


@pytest.mark.parametrize(("first", "second"), [("batched", "exact"), ("exact", "batched")])
def test_a_trial_moves_between_exact_and_batched_hosts(mixed, tmp_path, first, second):
    specs = mixed("nf4")
    host, other = build(specs, first), build_engine(specs["wide"].base, second)
    steps(host, list(specs), 6)
    for seat, spec in specs.items():
        folder = tmp_path / seat
        folder.mkdir()
        save_state(host.snapshot(seat), folder)
        other.join(seat, spec, load_state(folder))
    steps(other, list(specs), 6)
    whole = build(specs, "exact")
    steps(whole, list(specs), 12)
    for seat, spec in specs.items():
        bound = 1e-4 if spec.optim.optimizer == "adamw" else 24 * spec.optim.learning_rate
        assert largest_difference(adapter_of(whole, seat), adapter_of(other, seat)) <= bound, seat
        assert other.snapshot(seat).trained_by == "batched"
        assert other.export(seat, tmp_path / f"{seat}.bundle", {})["engine"] == "batched"


def test_a_checkpoint_of_a_batched_host_goes_on_bit_for_bit(mixed):
    specs = mixed("none")
    engine, resumed = build(specs, "batched"), build_engine(specs["wide"].base, "batched")
    steps(engine, list(specs), 5)
    for seat, spec in specs.items():
        resumed.join(seat, spec, engine.snapshot(seat))
    steps(engine, list(specs), 5)
    steps(resumed, list(specs), 5)
    for seat in specs:
        assert largest_difference(adapter_of(engine, seat), adapter_of(resumed, seat)) == 0.0


def test_seats_join_and_leave_in_mid_training(mixed):
    specs = mixed("nf4")
    engine = build({seat: specs[seat] for seat in ("attention", "wide", "dropout")}, "batched")
    steps(engine, ["attention", "wide", "dropout"], 4)
    engine.leave("attention")
    engine.join("micro", specs["micro"])
    engine.join("attention", specs["dora"])  # the place of another trial
    for seats in (["wide", "micro"], ["micro", "attention", "dropout"], ["wide"]) * 4:
        engine.step(seats)
    exact = build({seat: specs[seat] for seat in ("wide", "micro", "dropout", "dora")}, "exact")
    steps(exact, ["wide"], 12)
    steps(exact, ["micro"], 8)
    steps(exact, ["dropout"], 8)
    steps(exact, ["dora"], 4)
    for seat in ("wide", "micro", "dropout"):
        assert largest_difference(adapter_of(engine, seat), adapter_of(exact, seat)) <= 1e-4, seat
    other = adapter_of(exact, "dora")
    assert largest_difference(adapter_of(engine, "attention"), other) <= 1e-4


@pytest.mark.parametrize("form", FORMS)
def test_a_diverging_seat_leaves_its_neighbours_alone(mixed, form):
    specs = mixed(form)
    broken = replace(specs["wide"], optim=replace(specs["wide"].optim, learning_rate=1e30))
    engine, calm = build({**specs, "broken": broken}, "batched"), build(specs, "batched")
    results = [engine.step([*specs, "broken"]) for _ in range(6)]
    steps(calm, list(specs), 6)
    assert not results[-1]["broken"].is_finite
    assert all(one[seat].is_finite for one in results for seat in specs)
    for seat in specs:
        assert largest_difference(adapter_of(engine, seat), adapter_of(calm, seat)) <= 1e-3, seat


def test_a_neighbours_tokens_change_nothing(mixed, tiny_data, tmp_path):
    """The neighbour has other rows of the same lengths, so every product has the same shape."""
    specs = mixed("nf4")
    swapped = str.maketrans("abcdefghxyzw", "hgfedcbawzyx")
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    rows = [{name: text.translate(swapped) for name, text in row.items()} for row in rows]
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(map(json.dumps, rows)))
    pair = {"seat": specs["wide"], "neighbour": specs["attention"]}
    permuted = replace(specs["attention"], data=DataSpec(train=str(other)))
    engines = build(pair, "batched"), build({**pair, "neighbour": permuted}, "batched")
    for engine in engines:
        steps(engine, list(pair), 8)
    one, two = (adapter_of(engine, "neighbour") for engine in engines)
    assert largest_difference(one, two) > 1e-4
    one, two = (adapter_of(engine, "seat") for engine in engines)
    assert largest_difference(one, two) == 0.0


def test_an_adapter_is_evaluated_as_by_the_exact_engine(mixed):
    specs = mixed("nf4")
    batched, exact = build(specs, "batched"), build_engine(specs["wide"].base)
    steps(batched, list(specs), 3)
    for seat, spec in specs.items():
        exact.join(seat, spec, batched.snapshot(seat))
        assert exact.evaluate(seat) == batched.evaluate(seat)
