"""The engine against plain PEFT and torch, and its invariants."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.plain_peft import adapter_of, largest_difference, train_with_peft
from trainables.base.loading import load_base
from trainables.engine import build_engine
from trainables.errors import SpecError
from trainables.packing.lora import initial_weights
from trainables.rows.data import load_splits
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.optim import learning_rate_at
from trainables.training.state import load_state, save_state

STEPS = 20

FORMS = [
    pytest.param({"quantization": "none"}, id="float32"),
    pytest.param({"quantization": "nf4", "double_quant": True}, id="nf4-double-quantized"),
]


@pytest.fixture
def build_spec(tiny_base: Path, tiny_data: Path) -> Callable[..., TrialSpec]:
    def build(form: dict | None = None, seed: int = 0, **knobs) -> TrialSpec:
        lora = {k: knobs.pop(k) for k in list(knobs) if k in LoraSpec.__dataclass_fields__}
        return TrialSpec(
            base=BaseSpec(
                **{
                    "model": str(tiny_base),
                    "compute_dtype": "float32",
                    **(form or {"quantization": "none"}),
                }
            ),
            lora=LoraSpec(**lora),
            optim=OptimSpec(**{"steps": STEPS, "batch_size": 4, "learning_rate": 3e-3, **knobs}),
            data=DataSpec(train=str(tiny_data)),
            eval=EvalSpec(every=5, batch_size=8),
            seed=seed,
        )

    return build


@pytest.fixture
def mixed(build_spec: Callable[..., TrialSpec]) -> Callable[[dict], dict[str, TrialSpec]]:
    """Four trials that differ in everything a trial may differ in."""

    def build(form: dict) -> dict[str, TrialSpec]:
        return {
            "attention": build_spec(form, seed=1, rank=4, alpha=8, targets="attention"),
            "dropout": build_spec(
                form,
                seed=2,
                rank=8,
                alpha=4,
                targets=("q_proj", "down_proj"),
                dropout=0.2,
                learning_rate=1e-2,
                weight_decay=0.1,
                schedule="cosine",
                warmup_steps=3,
            ),
            "micro": build_spec(
                form,
                seed=3,
                rank=3,
                targets="mlp",
                rslora=True,
                batch_size=6,
                micro_batch_size=2,
                max_grad_norm=0.1,
                schedule="constant",
            ),
            "wide": build_spec(form, seed=4, rank=16, targets="all-linear", init="gaussian"),
        }

    return build


def train_alone(spec: TrialSpec, steps: int) -> dict[str, torch.Tensor]:
    engine = build_engine(spec.base)
    engine.join("alone", spec)
    for _ in range(steps):
        engine.step(["alone"])
    return adapter_of(engine, "alone")


@pytest.mark.parametrize("form", FORMS)
def test_packed_trials_equal_plain_peft_bit_for_bit(mixed, form):
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: on CUDA, PEFT's own kernels and dropout stream are others")
    specs = mixed(form)
    engine = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    for _ in range(STEPS):
        engine.step(list(specs))
    for seat, spec in specs.items():
        assert largest_difference(adapter_of(engine, seat), train_with_peft(spec, STEPS)) == 0.0


VARIANTS = [
    pytest.param({"loraplus_ratio": 16, "weight_decay": 0.1, "schedule": "cosine"}, id="lora+"),
    pytest.param({"dora": True, "rank": 4, "weight_decay": 0.1}, id="dora"),
    pytest.param({"dora": True, "dropout": 0.2, "loraplus_ratio": 4}, id="dora-dropout-lora+"),
    pytest.param({"init": "orthogonal", "rank": 6}, id="orthogonal"),
]


@pytest.mark.parametrize("form", [*FORMS, pytest.param({"quantization": "fp4"}, id="fp4")])
@pytest.mark.parametrize("knobs", VARIANTS)
def test_a_packed_variant_equals_plain_peft_bit_for_bit(mixed, build_spec, form, knobs):
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: on CUDA, PEFT's own kernels and dropout stream are others")
    spec, neighbour = build_spec(form, seed=5, **knobs), mixed(form)["dropout"]
    engine = build_engine(spec.base)
    engine.join("neighbour", neighbour)
    engine.join("seat", spec)
    for _ in range(8):
        engine.step(["neighbour", "seat"])
    assert largest_difference(adapter_of(engine, "seat"), train_alone(spec, 8)) == 0.0
    assert largest_difference(adapter_of(engine, "seat"), train_with_peft(spec, 8)) == 0.0


def test_dora_on_layers_with_a_bias_equals_plain_peft(build_spec, tiny_base, tmp_path):
    model = build_biased_llama(tiny_base)
    model.save_pretrained(tmp_path)
    for file in tiny_base.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    for form in ({"quantization": "none"}, {"quantization": "nf4"}):
        spec = build_spec({**form, "model": str(tmp_path)}, dora=True, weight_decay=0.1)
        assert largest_difference(train_alone(spec, 4), train_with_peft(spec, 4)) == 0.0


def build_biased_llama(tiny_base):
    config = AutoConfig.from_pretrained(tiny_base, attention_bias=True, mlp_bias=True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("knobs", "bound"),
    [
        pytest.param({"dora": True}, 0.0, id="dora"),
        pytest.param({"init": "orthogonal", "alpha": 64}, 1e-5, id="orthogonal"),
        pytest.param({"init": "orthogonal", "dora": True}, 1e-5, id="orthogonal-dora"),
    ],
)
def test_a_fresh_variant_changes_nothing(build_spec, form, knobs, bound):
    spec = build_spec(form, **knobs)
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    fresh, bare = engine.evaluate("seat"), engine.evaluate_base(spec)
    assert fresh["eval_loss"] == pytest.approx(bare["eval_loss"], abs=bound, rel=0)


def test_an_orthogonal_adapter_starts_as_pefts(build_spec):
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 24)
    config = peft.LoraConfig(r=6, target_modules=["0"], init_lora_weights="orthogonal")
    model = peft.get_peft_model(torch.nn.Sequential(layer), config)
    theirs = [model.base_model.model[0].lora_A, model.base_model.model[0].lora_B]
    ours = initial_weights(LoraSpec(rank=6, init="orthogonal"), "layer", 40, 24, seed=0)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.default.weight.shape
        assert one.std().item() == pytest.approx(other.default.weight.std().item(), rel=0.3)
    assert (ours[1] @ ours[0]).abs().max() < 1e-6


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_micro_batch_in_passes_gives_the_same_adapter(build_spec, dropout, dora):
    spec = build_spec(batch_size=6, micro_batch_size=3, dropout=dropout, dora=dora)
    engine = build_engine(spec.base)
    engine.join("whole", spec)
    engine.join("parts", spec, passes=2)
    for _ in range(6):
        whole, parts = engine.step(["whole", "parts"]).values()
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert parts.tokens == whole.tokens
    difference = largest_difference(adapter_of(engine, "whole"), adapter_of(engine, "parts"))
    assert difference <= 1e-5  # sums in another order; AdamW divides small ones by small ones
    assert engine.snapshot("parts").spec == spec


@pytest.mark.parametrize(
    "form",
    [
        *FORMS,
        pytest.param({"quantization": "fp4"}, id="fp4"),
        pytest.param({"quantization": "int8"}, id="int8"),
    ],
)
def test_a_pack_changes_nothing_about_its_members(mixed, form):
    specs = mixed(form)
    engine = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    for _ in range(5):
        engine.step(list(specs))
    for seat, spec in specs.items():
        assert largest_difference(adapter_of(engine, seat), train_alone(spec, 5)) == 0.0


def test_bfloat16_packs_are_exact_too(mixed):
    specs = {
        seat: replace(spec, base=replace(spec.base, compute_dtype="bfloat16"))
        for seat, spec in mixed({"quantization": "nf4"}).items()
    }
    wide = specs["wide"]
    specs["dora"] = replace(wide, lora=replace(wide.lora, dora=True, dropout=0.1))
    engine = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    for _ in range(5):
        engine.step(list(specs))
    for seat, spec in specs.items():
        assert largest_difference(adapter_of(engine, seat), train_alone(spec, 5)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_float16_packs_are_exact_too(mixed, form):
    specs = mixed({**form, "compute_dtype": "float16"})
    engine = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    for _ in range(5):
        engine.step(list(specs))
    for seat, spec in specs.items():
        assert largest_difference(adapter_of(engine, seat), train_alone(spec, 5)) == 0.0


def test_float16_gradients_are_those_of_float32_in_a_large_batch(build_spec):
    """The first moment after one step is a tenth of the gradient."""
    gradients = {}
    for dtype in ("float32", "float16"):
        spec = build_spec(
            {"quantization": "none", "compute_dtype": dtype},
            batch_size=2048,
            init="orthogonal",
            max_grad_norm=0,
        )
        engine = build_engine(spec.base)
        engine.join("seat", spec)
        assert engine.step(["seat"])["seat"].is_finite
        tensors = engine.snapshot("seat").tensors
        gradients[dtype] = torch.cat(
            [tensors[name].flatten() for name in sorted(tensors) if name.endswith("exp_avg")]
        )
    error = (gradients["float16"] - gradients["float32"]).norm() / gradients["float32"].norm()
    assert error < 2e-3


@pytest.mark.parametrize("form", FORMS)
def test_early_stop_and_late_join_leave_neighbours_alone(mixed, form):
    specs = mixed(form)
    engine = build_engine(specs["wide"].base)
    for seat in ("attention", "dropout", "micro"):
        engine.join(seat, specs[seat])
    for _ in range(8):
        engine.step(["attention", "dropout", "micro"])
    stopped = adapter_of(engine, "dropout")
    engine.leave("dropout")
    engine.join("wide", specs["wide"])
    for _ in range(12):
        engine.step(["wide", "attention", "micro"])
    assert largest_difference(stopped, train_alone(specs["dropout"], 8)) == 0.0
    assert largest_difference(adapter_of(engine, "wide"), train_alone(specs["wide"], 12)) == 0.0
    for seat in ("attention", "micro"):
        assert largest_difference(adapter_of(engine, seat), train_alone(specs[seat], 20)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_a_snapshot_goes_on_in_another_engine_as_if_nothing_happened(mixed, form, tmp_path):
    specs = mixed(form)
    engine = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        engine.join(seat, spec)
    for _ in range(7):
        engine.step(list(specs))
    for seat in specs:
        (tmp_path / seat).mkdir()
        save_state(engine.snapshot(seat), tmp_path / seat)

    other = build_engine(specs["wide"].base)
    for seat, spec in specs.items():
        state = load_state(tmp_path / seat)
        assert state.spec == spec
        other.join(seat, spec, state)
    for _ in range(STEPS - 7):
        other.step(list(specs))
    for seat, spec in specs.items():
        assert largest_difference(adapter_of(other, seat), train_alone(spec, STEPS)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_another_trial_goes_on_from_a_state_with_its_own_settings(build_spec, form, tmp_path):
    parent = build_spec(form, learning_rate=3e-3, weight_decay=0.1)
    child = build_spec(form, learning_rate=2.4e-3, weight_decay=0.0, dropout=0.1)
    engine = build_engine(parent.base)
    engine.join("parent", parent)
    for _ in range(8):
        engine.step(["parent"])
    save_state(engine.snapshot("parent"), tmp_path)
    engine.join("child", child, load_state(tmp_path))
    engine.join("copy", parent, load_state(tmp_path))
    assert largest_difference(adapter_of(engine, "child"), adapter_of(engine, "parent")) == 0.0
    for _ in range(4):
        results = engine.step(["parent", "child", "copy"])
    assert [result.step for result in results.values()] == [12, 12, 12]
    trained = {seat: adapter_of(engine, seat) for seat in results}
    assert largest_difference(trained["copy"], trained["parent"]) == 0.0
    assert largest_difference(trained["child"], trained["parent"]) > 0.0

    # The first step after the copy, as plain AdamW takes it with the child's rate and decay.
    rates = [learning_rate_at(spec.optim, 8) for spec in (parent, child)]
    still = replace(parent.optim, learning_rate=2.4e-3, weight_decay=0.0)
    alone = build_engine(parent.base)
    alone.join("parent", parent, load_state(tmp_path))
    alone.join("rate", replace(parent, optim=still), load_state(tmp_path))
    before = adapter_of(alone, "parent")
    alone.step(["parent", "rate"])
    after = {seat: adapter_of(alone, seat) for seat in ("parent", "rate")}
    for name, start in before.items():
        moved = after["parent"][name] - start * (1 - rates[0] * 0.1)
        expected = moved * (rates[1] / rates[0])
        assert torch.allclose(after["rate"][name] - start, expected, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_adapter_changes_nothing(mixed, form):
    spec = mixed(form)["wide"]
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    assert engine.evaluate("seat") == engine.evaluate_base(spec)


def test_the_bare_base_is_what_transformers_computes(build_spec):
    spec = build_spec()
    engine = build_engine(spec.base)
    model = load_base(spec.base)
    total, answers = 0.0, 0
    for row in load_splits(spec.data, model.tokenizer).validation.rows:
        ids = torch.from_numpy(row.input_ids)[None].to(model.device)
        mask = torch.from_numpy(row.is_answer)[1:].to(model.device)
        with torch.no_grad():
            log_probs = model.model(ids).logits[0, :-1].log_softmax(-1)
        total -= log_probs[mask, ids[0, 1:][mask]].sum().item()
        answers += int(mask.sum())
    assert engine.evaluate_base(spec)["eval_loss"] == pytest.approx(total / answers, rel=1e-5)


def test_only_adapters_learn(mixed):
    spec = mixed({"quantization": "nf4"})["wide"]
    engine = build_engine(spec.base)
    before = {name: p.detach().clone() for name, p in engine.base.model.named_parameters()}
    engine.join("seat", spec)
    for _ in range(3):
        engine.step(["seat"])
    after = dict(engine.base.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in after.values())


def test_training_goes_on_after_an_evaluation(build_spec):
    """bitsandbytes 0.50.2 repacks 4-bit weights for inference and then gives no gradient."""
    spec = build_spec({"quantization": "nf4"})
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    engine.evaluate("seat")
    for _ in range(STEPS):
        engine.step(["seat"])
    assert largest_difference(adapter_of(engine, "seat"), train_alone(spec, STEPS)) == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_a_diverging_seat_says_so_and_its_neighbours_do_not_notice(mixed, build_spec, form):
    specs = mixed(form)
    engine = build_engine(specs["wide"].base)
    engine.join("broken", build_spec(form, learning_rate=1e30, max_grad_norm=0))
    engine.join("wide", specs["wide"])
    results = [engine.step(["broken", "wide"]) for _ in range(6)]
    assert [r["wide"].is_finite for r in results] == [True] * 6
    assert not results[-1]["broken"].is_finite
    assert results[-1]["broken"].step < 6
    assert largest_difference(adapter_of(engine, "wide"), train_alone(specs["wide"], 6)) == 0.0


def test_a_tiny_model_learns(build_spec):
    spec = build_spec(steps=60, batch_size=8, learning_rate=1e-2)
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    before = engine.evaluate("seat")
    for _ in range(60):
        engine.step(["seat"])
    after = engine.evaluate("seat")
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_token_accuracy"] > before["eval_token_accuracy"]


def test_micro_batches_give_the_loss_of_the_whole_batch(build_spec):
    whole, parts = build_spec(batch_size=8), build_spec(batch_size=8, micro_batch_size=2)
    engine = build_engine(whole.base)
    engine.join("whole", whole)
    engine.join("parts", parts)
    results = engine.step(["whole", "parts"])
    assert results["parts"].loss == pytest.approx(results["whole"].loss, rel=1e-5)
    assert results["parts"].tokens == results["whole"].tokens


def test_exact_match_is_what_greedy_decoding_writes(build_spec):
    spec = build_spec(steps=60, batch_size=16, learning_rate=1e-2)
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    for _ in range(60):
        engine.step(["seat"])
    folder_scores = engine.evaluate_rows("seat")
    adapter = adapter_of(engine, "seat")
    plain = load_base(spec.base)
    model = peft.get_peft_model(
        plain.model, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            module.lora_A.default.weight.data = adapter[f"{name}/a"].to(plain.device)
            module.lora_B.default.weight.data = adapter[f"{name}/b"].to(plain.device)
    model.eval()
    rows = load_splits(spec.data, plain.tokenizer).validation.rows
    written = []
    for row in rows:
        prompt = torch.from_numpy(row.input_ids[~row.is_answer])[None].to(plain.device)
        answer = row.input_ids[row.is_answer].tolist()
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=len(answer),
            pad_token_id=0,
        )
        written.append(output[0, prompt.shape[1] :].tolist() == answer)
    scored = [
        c == t
        for c, t in zip(folder_scores.correct_tokens, folder_scores.answer_tokens, strict=True)
    ]
    assert scored == written
    assert sum(written) > 0


def test_trials_with_different_training_limits_share_a_host(build_spec):
    whole = build_spec(batch_size=8)
    short = replace(whole, data=replace(whole.data, train_max_tokens=10))
    engine = build_engine(whole.base)
    engine.join("whole", whole)
    engine.join("short", short)
    for _ in range(3):
        engine.step(["whole", "short"])
    assert largest_difference(adapter_of(engine, "whole"), train_alone(whole, 3)) == 0.0
    assert largest_difference(adapter_of(engine, "short"), train_with_peft(short, 3)) == 0.0
    assert engine.snapshot("short").tokens < engine.snapshot("whole").tokens
    assert engine._splits(short.data).validation is engine._splits(whole.data).validation


def test_seats_and_targets_are_checked(build_spec):
    spec = build_spec()
    engine = build_engine(spec.base)
    engine.join("seat", spec)
    with pytest.raises(SpecError, match="'seat' is taken"):
        engine.join("seat", spec)
    with pytest.raises(SpecError, match=r"lora.targets: got 'qkv'.*down_proj, gate_proj"):
        engine.join("other", build_spec(targets=("qkv",)))
    assert engine.seats == ("seat",)
