"""Properties of search spaces, sweep files, trial specs and digests, on inputs that are drawn."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution

from orchestrator.errors import SweepSpecError
from orchestrator.journal.first_spec import FirstSpec
from orchestrator.spec.sweep import SweepSpec, build_trial, parse_sweep
from orchestrator.sweepfile.writing import dump_sweep
from trainables.contract import identity_digest
from trainables.errors import SpecError
from trainables.spec import BaseSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

QUICKSTART = Path(__file__).parents[3] / "sweeps" / "quickstart.yaml"
# The same examples in every run, however slow the machine.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.load_profile("same")
FEWER = settings(max_examples=50)  # each example parses a whole sweep

words = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=8)
layers = st.lists(words, min_size=1, max_size=3, unique=True).map(tuple)
targets = st.sampled_from(["attention", "mlp", "all-linear"]) | layers


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


loras = st.builds(
    LoraSpec,
    rank=st.integers(1, 512).map(lambda half: 2 * half),
    alpha=numbers(1e-3, 1e4),
    targets=targets,
    dropout=numbers(0.0, 0.99),
    rslora=st.booleans(),
    init=st.sampled_from(["kaiming", "gaussian", "orthogonal", "eva"]),
)
optims = st.builds(
    OptimSpec,
    steps=st.integers(10, 10**6),
    optimizer=st.sampled_from(["adamw", "lion", "paged_adamw_8bit"]),
    learning_rate=numbers(1e-9, 10.0),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    warmup_steps=st.integers(0, 10),
    batch_size=st.integers(1, 512),
    weight_decay=numbers(0.0, 1.0),
    loraplus_ratio=numbers(1.0, 64.0),
)
bases = st.builds(
    BaseSpec,
    model=st.just("owner/name"),
    quantization=st.sampled_from(["nf4", "fp4", "int8", "none"]),
    double_quant=st.booleans(),
)


@pytest.fixture(scope="module")
def quickstart():
    return SweepSpec.from_yaml(QUICKSTART)


@pytest.fixture(scope="module")
def trials(quickstart):
    return st.builds(
        TrialSpec,
        base=bases,
        lora=loras,
        optim=optims,
        data=st.just(quickstart.data),
        eval=st.builds(EvalSpec, every=st.integers(1, 100), batch_size=st.integers(1, 64)),
        seed=st.integers(0, 2**31),
    )


# ------------------------------------------------------------------------------------- trials


@given(data=st.data())
def test_a_trial_comes_back_from_json_as_it_was(trials, data):
    trial = data.draw(trials)
    assert TrialSpec.from_dict(json.loads(json.dumps(trial.to_dict()))) == trial


@given(data=st.data())
def test_the_log_tells_a_trial_by_its_difference_from_any_other(trials, data):
    one, other = data.draw(trials).to_dict(), data.draw(trials).to_dict()
    first = FirstSpec()
    first.learn(one)
    written = json.loads(json.dumps(first.shorten({"trial": 7, "spec": other})))
    assert first.restore(written)["spec"] == json.loads(json.dumps(other))


# --------------------------------------------------------------------------------- the space

WHOLE = {"lora.rank": (1, 1024), "optim.batch_size": (1, 64), "optim.warmup_steps": (0, 9)}
REAL = {
    "optim.learning_rate": (1e-7, 1.0),
    "lora.alpha": (1e-2, 512.0),
    "optim.weight_decay": (0.0, 1.0),
    "lora.dropout": (0.0, 0.9),
}
WORDS = {
    "optim.schedule": ["constant", "linear", "cosine"],
    "lora.rslora": [True, False],
    "lora.targets": ["attention", "mlp", ["q_proj", "v_proj"], ["k_proj"]],
    "base.quantization": ["nf4", "fp4", "none"],
}


@st.composite
def spaces(draw):
    """A space of one to five knobs of any kind, in any order."""
    names = draw(
        st.lists(st.sampled_from([*WHOLE, *REAL, *WORDS]), min_size=1, max_size=5, unique=True)
    )
    space = {}
    for name in names:
        if name in WORDS:
            listed = st.lists(st.sampled_from(WORDS[name]), min_size=1, max_size=3, unique_by=str)
            space[name] = {"choice": draw(listed)}
            continue
        low, high = WHOLE.get(name) or REAL[name]
        drawn = st.integers(low, high) if name in WHOLE else numbers(low, high)
        bounds = sorted(draw(st.lists(drawn, min_size=2, max_size=2, unique=True)))
        kind = draw(
            st.sampled_from(["int", "log_int"] if name in WHOLE else ["uniform", "log_uniform"])
        )
        if bounds[0] <= 0:
            kind = kind.removeprefix("log_")
        space[name] = {kind: bounds}
    return space


def drawn_with(dice):
    def draw(name, distribution):
        if isinstance(distribution, CategoricalDistribution):
            return dice.choice(distribution.choices)
        if isinstance(distribution, IntDistribution):
            return dice.randint(distribution.low, distribution.high)
        return dice.uniform(distribution.low, distribution.high)

    return draw


@FEWER
@given(space=spaces(), seed=st.integers(0, 2**31))
def test_whatever_is_suggested_is_a_trial_and_is_read_back_from_optuna(quickstart, space, seed):
    sweep = replace(quickstart, space=space, search=replace(quickstart.search, algorithm="random"))
    searched, dice = sweep.search_space, random.Random(seed)
    knobs = searched.suggest(drawn_with(dice))
    assert list(knobs) == list(space)
    assert searched.refuse(knobs) == ""
    assert searched.decode(searched.encode(knobs)) == knobs
    assert searched.settle(json.loads(json.dumps(knobs))) == knobs
    trial = build_trial(sweep, knobs).to_dict()
    for name, value in knobs.items():
        section, field = name.split(".")
        assert trial[section][field] == value
        assert searched.knobs[name].holds(value)


@FEWER
@given(space=spaces())
def test_a_sweep_comes_back_from_its_values_and_from_its_file(quickstart, space, tmp_path_factory):
    sweep = replace(quickstart, space=space, search=replace(quickstart.search, algorithm="random"))
    values = sweep.to_dict()
    again = parse_sweep(json.loads(json.dumps(values)), QUICKSTART.parent)
    assert again == sweep
    assert again.digest == sweep.digest
    file = tmp_path_factory.mktemp("file") / "sweep.yaml"
    file.write_text(dump_sweep(values, str(file.parent)))
    assert SweepSpec.from_yaml(file).to_dict() == values


@FEWER
@given(space=spaces(), data=st.data())
def test_a_digest_tells_sweeps_apart_and_knows_them_in_any_order(quickstart, space, data):
    sweep = replace(quickstart, space=space, search=replace(quickstart.search, algorithm="random"))
    turned = {
        section: dict(reversed(values.items())) if isinstance(values, dict) else values
        for section, values in reversed(sweep.to_dict().items())
    }
    assert sweep.digest_of(turned) == sweep.digest
    section = data.draw(st.sampled_from(["lora", "optim", "seed", "schedule"]))
    changed = {
        "lora": {"lora": replace(sweep.lora, alpha=sweep.lora.alpha + 0.5)},
        "optim": {"optim": replace(sweep.optim, max_grad_norm=sweep.optim.max_grad_norm / 2)},
        "seed": {"seed": sweep.seed + 1},
        "schedule": {"schedule": replace(sweep.schedule, reduction_factor=7)},
    }
    assert replace(sweep, **changed[section]).digest != sweep.digest
    more = replace(sweep.budget, trials=sweep.budget.trials + 1)
    assert replace(sweep, budget=more).digest == sweep.digest


# ------------------------------------------------------------------------------ sweep files


@settings(max_examples=150)
@given(seed=st.integers(0, 2**31))
def test_a_damaged_file_is_read_or_refused_in_words(seed, tmp_path_factory):
    dice, text = random.Random(seed), QUICKSTART.read_text()
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(text))
        cut = dice.choice([0, 0, 1, 3, 20])
        put = dice.choice(
            [
                "",
                " ",
                "\t",
                ":",
                "-",
                "{",
                "]",
                "'",
                '"',
                "&a ",
                "*a",
                "!!int ",
                "#",
                "1e999",
                "\x00",
                "é",
                "\n",
                "? ",
                "|",
                "~",
            ]
        )
        text = text[:at] + put + text[at + cut :]
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    if not (folder / "data").exists():
        (folder / "data").symlink_to(QUICKSTART.parent / "data")
    file = folder / "sweep.yaml"
    file.write_text(text, newline="")
    try:
        found = SweepSpec.from_yaml(file)
    except (SweepSpecError, SpecError) as error:
        said = str(error)
    else:
        said = "read"
        assert parse_sweep(found.to_dict(), folder) == found
    assert said


# --------------------------------------------------------------------------------- manifests

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(manifest=st.dictionaries(st.text(max_size=6), plain, max_size=5), name=words, value=plain)
def test_a_bundles_digest_covers_all_but_what_is_measured(manifest, name, value):
    digest = identity_digest(manifest)
    assert identity_digest(dict(reversed(manifest.items()))) == digest
    assert identity_digest(json.loads(json.dumps(manifest))) == digest
    assert identity_digest({**manifest, "metrics": value, "packages": value}) == digest
    assume(name not in manifest and name not in ("metrics", "packages", "digest"))
    assert identity_digest({**manifest, name: value}) != digest
