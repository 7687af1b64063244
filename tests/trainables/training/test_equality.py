"""A pack trains what plain PEFT trains, and is served as trained, on bases that people have.

Stored type x architecture x stored form x compute type. Where nothing rounds differently the
difference is 0.0: `docs/equality.md` says when.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.bases import (
    DENSE,
    EXPERTS,
    REFUSED,
    Architecture,
    dynamic_rope,
    longrope,
    save_base,
)
from tests.support.gguf_base import save_gguf_base
from tests.support.plain_peft import adapter_of, largest_difference, train_with_peft
from trainables.base.loading import load_base
from trainables.engine import Engine, build_engine
from trainables.errors import BaseModelError, SpecError
from trainables.evaluation.serving import load_served
from trainables.packing.batches import build_batch
from trainables.rows.data import EncodedRow
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec
from trainables.training.packed_model import PackedModel

STEPS = 3

FORMS = ("none", "nf4", "fp4", "int8")

THOROUGH = (
    "llama",
    "llama, outliers",
    "phi, LayerNorm",
    "gpt2, Conv1D",
    "gemma 3, windows, q/k norm",
    "opt",
)
"""Kinds of norm, of head and of linear layer: these meet every form and type."""


@pytest.fixture(scope="module")
def stored_base(tmp_path_factory: pytest.TempPathFactory, byte_tokenizer) -> Callable[..., Path]:
    """The folder of a base; made once for each architecture and stored type."""
    made: dict[tuple[str, str], Path] = {}

    def build(architecture: Architecture, stored: str) -> Path:
        key = repr(architecture), stored
        if key not in made:
            folder = tmp_path_factory.mktemp("base")
            made[key] = save_base(folder, architecture, stored, byte_tokenizer)
        return made[key]

    return build


def trial_on(base: Path, data: Path, form: str, compute: str, **lora) -> TrialSpec:
    return TrialSpec(
        base=BaseSpec(model=str(base), quantization=form, compute_dtype=compute),
        lora=LoraSpec(**{"rank": 4, "alpha": 16, **lora}),
        optim=OptimSpec(steps=10, batch_size=4, learning_rate=3e-3),
        data=DataSpec(train=str(data)),
        eval=EvalSpec(batch_size=8),
        seed=1,
    )


def train_packed(spec: TrialSpec) -> Engine:
    """The trial beside a neighbour that differs in rank, dropout, batch and seed."""
    neighbour = replace(
        spec,
        lora=LoraSpec(rank=8, alpha=4, dropout=0.1),
        optim=replace(spec.optim, batch_size=3, learning_rate=1e-2),
        seed=2,
    )
    engine = build_engine(spec.base)
    engine.join("neighbour", neighbour)
    engine.join("seat", spec)
    for _ in range(STEPS):
        engine.step(["neighbour", "seat"])
    return engine


def logits_beside_served(engine: Engine, bundle: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of one row: of the engine's seat, and of its bundle served as it was trained."""
    ids = np.arange(40, 53)
    row = EncodedRow(input_ids=ids, is_answer=np.arange(len(ids)) > 0)
    engine.export("seat", bundle, {})
    model = load_served(bundle, "trained").model
    with torch.no_grad():
        (ours,) = engine._model.logits([build_batch("seat", [row], engine.base.device)])
        tokens = torch.from_numpy(ids)[None].to(model.device)
        served = model(input_ids=tokens, use_cache=False).logits[0, :-1]
    return ours, served


def assert_equal_to_plain_peft(spec: TrialSpec, bundle: Path, bound: float = 0.0) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a CPU: on CUDA, PEFT's own kernels and dropout stream are others")
    engine = train_packed(spec)
    plain = train_with_peft(spec, STEPS)
    assert largest_difference(adapter_of(engine, "seat"), plain) <= bound
    assert any(name.endswith("/b") and weights.any() for name, weights in plain.items())
    ours, served = logits_beside_served(engine, bundle)
    assert (ours - served).abs().max().item() <= bound
    types = {p.dtype for p in engine.base.model.parameters() if p.is_floating_point()}
    types.discard(torch.float32)  # of constants and of the adapters themselves
    assert types <= {engine.base.compute_dtype}
    assert engine.base.record.compute_dtype == spec.base.compute_dtype


@pytest.mark.parametrize("form", ["none", "nf4"])
@pytest.mark.parametrize("name", DENSE)
def test_a_base_stored_in_bfloat16_is_computed_in_float32(
    stored_base, tiny_data, tmp_path, name, form
):
    base = stored_base(DENSE[name], "bfloat16")
    spec = trial_on(base, tiny_data, form, "float32")
    assert_equal_to_plain_peft(spec, tmp_path / "bundle")


COMBINATIONS = [
    # Each stored type meets each architecture; which one meets which form goes round.
    (name, form, compute, ("float32", "bfloat16", "float16")[number % 3])
    for number, (name, form, compute) in enumerate(
        itertools.product(THOROUGH, FORMS, ("bfloat16", "float32"))
    )
]


@pytest.mark.parametrize(("name", "form", "compute", "stored"), COMBINATIONS)
def test_every_form_computes_in_the_type_on_record(
    stored_base, tiny_data, tmp_path, name, form, compute, stored
):
    base = stored_base(DENSE[name], stored)
    spec = trial_on(base, tiny_data, form, compute)
    assert_equal_to_plain_peft(spec, tmp_path / "bundle")


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_a_gguf_base_like_the_demos_computes_in_either_type(tiny_data, tmp_path, form, compute):
    """Its weights come as bfloat16, whatever the processor multiplies."""
    base = save_gguf_base(tmp_path / "base.gguf")
    spec = trial_on(base, tiny_data, form, compute)
    assert_equal_to_plain_peft(spec, tmp_path / "bundle")


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["none", "nf4"])
@pytest.mark.parametrize("name", ["phi, LayerNorm", "gpt2, Conv1D", "qwen3, q/k norm"])
def test_dora_is_plain_pefts_on_other_layers_too(
    stored_base, tiny_data, tmp_path, name, form, compute
):
    base = stored_base(DENSE[name], "float32")
    spec = trial_on(base, tiny_data, form, compute, dora=True, dropout=0.1)
    assert_equal_to_plain_peft(spec, tmp_path / "bundle")


@pytest.mark.parametrize("form", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", THOROUGH)
def test_float16_packs_equal_trials_alone(stored_base, tiny_data, name, form):
    spec = trial_on(stored_base(DENSE[name], "bfloat16"), tiny_data, form, "float16")
    alone = build_engine(spec.base)
    alone.join("seat", spec)
    for _ in range(STEPS):
        alone.step(["seat"])
    packed = train_packed(spec)
    assert largest_difference(adapter_of(packed, "seat"), adapter_of(alone, "seat")) == 0.0


@pytest.mark.parametrize("name", EXPERTS)
def test_routed_experts_round_differently_at_most(stored_base, tiny_data, tmp_path, name):
    """Rows of all seats that one expert gets are multiplied at once."""
    spec = trial_on(
        stored_base(EXPERTS[name], "bfloat16"), tiny_data, "none", "float32", targets="attention"
    )
    engine = train_packed(spec)
    difference = largest_difference(adapter_of(engine, "seat"), train_with_peft(spec, STEPS))
    assert difference <= 1e-5
    ours, served = logits_beside_served(engine, tmp_path / "bundle")
    assert torch.allclose(ours, served, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_base_whose_rows_would_mix_is_refused_with_the_reason(stored_base, name):
    architecture, reason = REFUSED[name]
    base = stored_base(architecture, "float32")
    spec = BaseSpec(model=str(base), quantization="none", compute_dtype="float32")
    with pytest.raises(BaseModelError, match=f"(?s)base.model: .*{reason}.*Choose another base"):
        PackedModel(load_base(spec))


def test_a_long_neighbour_does_not_change_rotary_frequencies(stored_base, tmp_path):
    """Rows of 9 tokens are within the first frequencies, those of 30 beyond."""
    base = stored_base(longrope(16), "bfloat16")
    files = {"short": tmp_path / "short.jsonl", "long": tmp_path / "long.jsonl"}
    for name, file in files.items():
        prompt = "abc ->" if name == "short" else f"{'abcde' * 5} ->"
        row = '{"prompt": "%s", "completion": " %s"}\n'
        file.write_text(
            "".join(
                row % (f"{i} {prompt}"[-9:] if name == "short" else f"{i} {prompt}", "xyzw"[i % 4])
                for i in range(200)
            )
        )
    specs = {name: trial_on(base, file, "none", "float32") for name, file in files.items()}
    engine = build_engine(specs["short"].base)
    for name, spec in specs.items():
        engine.join(name, spec)
    for _ in range(STEPS):
        engine.step(["short", "long"])
    for name, spec in specs.items():
        plain = train_with_peft(spec, STEPS)
        assert largest_difference(adapter_of(engine, name), plain) == 0.0


def test_scores_do_not_depend_on_the_length_of_rows_scored_with_them(stored_base, tmp_path):
    base = stored_base(longrope(16), "bfloat16")
    rows = tmp_path / "rows.jsonl"
    texts = [f"{'abcde' * (1 + 4 * (i % 2))} {i} ->" for i in range(24)]
    rows.write_text("".join(f'{{"prompt": "{text}", "completion": " x"}}\n' for text in texts))
    spec = trial_on(base, rows, "none", "float32")
    engine = build_engine(spec.base)
    losses = []
    for size in (1, 24):
        engine.join("seat", replace(spec, eval=EvalSpec(batch_size=size)))
        losses.append(engine.evaluate_rows("seat").loss_sum)
        engine.leave("seat")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_that_would_change_dynamic_frequencies_are_refused(stored_base, tiny_data):
    spec = trial_on(stored_base(dynamic_rope(8), "float32"), tiny_data, "none", "float32")
    engine = build_engine(spec.base)
    with pytest.raises(SpecError, match=r"data\.max_tokens: a row has \d+ tokens; allowed: at mo"):
        engine.join("seat", spec)


def test_rows_beyond_learned_positions_are_refused(stored_base, tiny_data):
    short = DENSE["gpt2, Conv1D"]
    short = replace(short, config={**short.config, "n_positions": 12})
    spec = trial_on(stored_base(short, "float32"), tiny_data, "none", "float32")
    engine = build_engine(spec.base)
    with pytest.raises(SpecError, match=r"allowed: at most 12 with GPT2LMHeadModel"):
        engine.join("seat", spec)


def test_a_conv1d_base_is_served_in_all_forms_without_a_word(stored_base, tiny_data, tmp_path):
    """PEFT warns of every such layer, and warnings are errors here."""
    spec = trial_on(stored_base(DENSE["gpt2, Conv1D"], "bfloat16"), tiny_data, "nf4", "float32")
    engine = train_packed(spec)
    engine.export("seat", tmp_path / "bundle", {})
    tokens = torch.arange(40, 53)[None]
    logits = {}
    with torch.no_grad():
        for form in ("trained", "unquantized", "merged", "requantized"):
            served = load_served(tmp_path / "bundle", form)
            logits[form] = served.model(input_ids=tokens.to(served.device)).logits
    assert torch.allclose(logits["unquantized"], logits["merged"], atol=1e-4)
    assert (logits["trained"] - logits["requantized"]).abs().mean() < 0.5
