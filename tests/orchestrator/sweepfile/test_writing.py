"""What can be said in Python can be said in YAML, and the other way round."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.hosts_section import HostsSpec
from orchestrator.spec.sections import BudgetSpec, ObjectiveSpec, SearchSpec
from orchestrator.spec.sweep import RESUMABLE_CHANGES, SweepSpec, parse_sweep
from orchestrator.sweepfile.reading import YamlText
from orchestrator.sweepfile.writing import dump_sweep
from trainables.data_spec import ColumnsSpec, SplitNames
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec

TEXTS = (
    "", "a", "no", "Yes", "null", "~", "1e-4", "1e5", ".5", "0x1f", "1:30", "1_000", "010", "nan",
    "2026-01-31", "- a", "a: b", "#a", "a #b", "{a}", "[a]", "*a", "&a", "!a", "|", ">", "@a", "`",
    "%a", "'", '"', "\\d+", "a\nb", "\n", "a\n\n", "\ta", " a ", "…", "日本", "\x85", "\u2028",
    "\x07",
    "<<", "=", "...", "---", "x" * 300, "two words " * 30,
)  # fmt: skip


def drawn_knob(draw: random.Random, hint: str) -> Any:
    low = 10 ** draw.uniform(-9, 2)
    return draw.choice(
        {
            "float": [
                {"log_uniform": [low, low * 3]},
                {"uniform": [low, low * 2]},
                {"choice": [low, low * 2, 1]},
                low,
            ],
            "whole": [{"choice": draw.sample(range(1, 99), 3)}, {"int": [2, 8]}, 4],
            "text": [{"choice": ["linear", "cosine"]}, "constant"],
            "layers": [{"choice": ["mlp", ["v_proj", "q_proj"], "attention"]}, ["k_proj"]],
        }[hint]
    )


def drawn_space(draw: random.Random) -> dict[str, Any]:
    kinds = {
        "optim.learning_rate": "float",
        "optim.weight_decay": "float",
        "optim.warmup_steps": "whole",
        "optim.schedule": "text",
        "lora.targets": "layers",
    }
    names = draw.sample(list(kinds), draw.randint(0, len(kinds)))
    space: dict[str, Any] = {"lora.rank": {"choice": [2, 4, 8]}}
    space |= {name: drawn_knob(draw, kinds[name]) for name in names}
    if draw.random() < 0.5:
        space["lora.dropout"] = {"uniform": [0.0, 0.1], "when": {"lora.rank": [4, 8]}}
    return space | draw.choice(
        [{}, {"lora.alpha": {"tied": "2 * lora.rank"}}, {"lora.alpha_per_rank": 2}]
    )


def drawn_sweep(seed: int) -> SweepSpec:
    """A sweep whose texts and numbers are hard to write."""
    draw = random.Random(seed)
    text = draw.choice([one for one in TEXTS if one.strip()])
    columns = ColumnsSpec(prompt=text, completion=draw.choice(TEXTS[1:]))
    return SweepSpec(
        name="tiny",
        base=BaseSpec(model=f"owner/{seed}", revision=draw.choice(TEXTS)),
        data=DataSpec(
            train="owner/rows",
            columns=draw.choice([None, columns]),
            split=draw.choice([None, text, SplitNames(train=text)]),
            group_by=draw.choice([None, text]),
            template_args={
                draw.choice(TEXTS): draw.choice([text, 1, 1e-7, False, None, [text, {"a": 1e22}]])
            },
        ),
        lora=LoraSpec(dropout=draw.random() / 2, targets=draw.choice(["mlp", ("q_proj",)])),
        optim=OptimSpec(steps=100, learning_rate=10 ** draw.uniform(-9, 0)),
        eval=EvalSpec(every=10, max_rows=draw.choice([None, 7])),
        space=drawn_space(draw),
        forbid=draw.choice([(), ({"lora.rank": 8, "lora.targets": ["mlp"]},)]),
        objective=ObjectiveSpec(also=draw.choice([{}, {"peak_memory_gib": "min"}])),
        search=SearchSpec(start=draw.choice([(), ({"lora.rank": 4},)])),
        budget=BudgetSpec(trials=3, wall_clock_s=draw.choice([None, 1e-3, 600])),
        hosts=HostsSpec(seats=draw.randint(1, 9)),
        seed=draw.randint(0, 2**32 - 1),
    )


@pytest.fixture(scope="module")
def drawn() -> list[SweepSpec]:
    return [drawn_sweep(seed) for seed in range(36)]


def test_a_written_sweep_is_read_as_the_same_sweep(drawn: list[SweepSpec], tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    for spec in drawn:
        path.write_text(dump_sweep(spec.to_dict(), "runs/tiny"), encoding="utf-8")
        again = SweepSpec.from_yaml(path)
        assert again == spec
        assert again.digest == spec.digest
        assert again.search_space == spec.search_space


def test_the_digest_changes_with_what_decides_trials_alone(drawn: list[SweepSpec]) -> None:
    assert len({spec.digest for spec in drawn}) == len(drawn)
    for spec in drawn:
        values = spec.to_dict()
        assert parse_sweep(dict(reversed(values.items())), Path()).digest == spec.digest
        other = dataclasses.replace(spec, hosts=HostsSpec(seats=10), budget=BudgetSpec(trials=4))
        assert {"hosts", "budget"} <= set(RESUMABLE_CHANGES)
        assert other.digest == spec.digest
        assert dataclasses.replace(spec, seed=spec.seed // 2 + 1).digest != spec.digest


VALUES = [*TEXTS, *({one: one} for one in TEXTS), list(TEXTS), 1e-7, 1e22]


@pytest.mark.parametrize("value", VALUES)
def test_every_plain_value_is_read_as_it_was_written(value: Any) -> None:
    values = {"name": "tiny", "a": {"b": value}, "c": [value], "d": value}
    assert YamlText("x", dump_sweep(values, "runs/tiny")).value() == values


def test_the_file_is_easy_to_read_and_says_how_to_use_it(tmp_path: Path) -> None:
    text = dump_sweep(drawn_sweep(1).to_dict(), "runs/my sweep")
    lines = text.splitlines()
    assert lines[1] == "#   lorchestra run 'runs/my sweep/sweep.yaml' --storage 'runs/my sweep'"
    assert "  lora.rank: {choice: [2, 4, 8]}" in lines
    assert "optim:" in lines
    assert "  steps: 100" in lines
    assert "lorchestra run sweep.yaml --storage s3://b/x" in dump_sweep({"name": "x"}, "s3://b/x")
