"""How much training each search needs until it has found what a full grid finds.

A small random Llama learns to answer from its prompts; the space is a grid of five knobs. The real
engine trains every grid point once, to the horizon, and its learning curve is kept on disk: as a
curve follows from its configuration alone, all searches share them, and a search only chooses
which curve is read on next. The searcher and the scheduler are those of a sweep; in place of Ray
there is a loop in which the trials in so many seats take turns, one evaluation each.

What counts is the tokens of all trials together until one of them reports a validation loss within
1 % of the lowest in the whole grid. A search is repeated with seeds 0, 1, 2, ...; a seed whose
search ended without that loss counts as infinitely many tokens in the median.

    python benchmarks/search_efficiency.py --seeds 21
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from orchestrator.search.schedule import build_scheduler
from orchestrator.search.searcher import OptunaSearcher
from orchestrator.spec.sweep import SweepSpec, build_trial, parse_sweep
from trainables.engine import Engine, build_engine

WITHIN = 0.01
SEATS = 4
PACK = 8
ROWS = {"train": 192, "validation": 96}
LETTERS = "abcdefghijkl"

SPACE = {
    "lora.rank": {"choice": [2, 8]},
    "lora.alpha_per_rank": {"choice": [1, 2, 4]},
    "lora.targets": {"choice": ["attention", "mlp", "all-linear"]},
    "optim.learning_rate": {"choice": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]},
    "optim.loraplus_ratio": {"choice": [1, 8]},
}

METHODS = {
    "grid": ("grid", "none"),
    "random": ("random", "none"),
    "TPE": ("tpe", "none"),
    "random + ASHA": ("random", "asha"),
    "TPE + ASHA": ("tpe", "asha"),
}
"""Algorithm and schedule of each row of the table; ratios are to the first."""


class TrialReport(NamedTuple):
    """One point of a learning curve."""

    step: int
    tokens: int
    loss: float


Curve = Sequence[TrialReport]


# --------------------------------------------------------------------------------- base and data


def write_inputs(folder: Path) -> None:
    """A random base with its tokenizer, and rows that it can learn but not by heart."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.15,  # a tied head of the usual 0.02 could never be sure of a token
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    _build_tokenizer().save_pretrained(folder / "base")
    draw = random.Random(0)
    for split, count in ROWS.items():
        rows = "".join(json.dumps(_draw_row(draw)) + "\n" for _ in range(count))
        (folder / f"{split}.jsonl").write_text(rows)


def _build_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and two special tokens."""
    specials = ["<pad>", "<|end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<pad>"
    )


def _draw_row(draw: random.Random) -> dict[str, str]:
    """The next letter but one and a digit of another letter, which is off in one row of eight."""
    first, second = draw.choices(LETTERS, k=2)
    digit = LETTERS.index(second) % 4
    if draw.random() < 1 / 8:
        digit = draw.randrange(4)  # so that no loss comes near to zero
    answer = LETTERS[(LETTERS.index(first) + 2) % len(LETTERS)]
    return {"prompt": f"{first}{second}=", "completion": f"{answer}{digit}"}


def build_spec(
    folder: Path,
    *,
    space: Mapping[str, Any] = SPACE,
    algorithm: str = "grid",
    schedule: str = "none",
    steps: int = 64,
    seed: int = 0,
) -> SweepSpec:
    values = {
        "name": "efficiency",
        "base": {
            "model": str(folder / "base"), "quantization": "none", "compute_dtype": "float32",
        },
        "data": {split: str(folder / f"{split}.jsonl") for split in ROWS},
        "optim": {"steps": steps, "batch_size": 8},
        "eval": {"every": steps // 8, "batch_size": ROWS["validation"]},
        "space": space,
        "search": {"algorithm": algorithm},
        "schedule": {"algorithm": schedule},
        "budget": {"trials": math.prod(len(knob["choice"]) for knob in space.values())},
        "hosts": {"seats": SEATS},
        "seed": seed,
    }  # fmt: skip
    return parse_sweep(values, Path.cwd())


# ----------------------------------------------------------------------------------- the curves


class Curves:
    """The learning curve of every grid point; trained once, then read from disk.

    Args:
        spec: The grid; with its seed all trials are trained.
        file: Where they are kept. Those of another grid or task are trained anew.
    """

    def __init__(self, spec: SweepSpec, file: Path) -> None:
        self._spec, self._file = spec, file
        kept = json.loads(file.read_text()) if file.exists() else {}
        known = kept.get("curves", {}) if kept.get("digest") == self._digest else {}
        self._curves = {key: [TrialReport(*one) for one in curve] for key, curve in known.items()}

    def of(self, knobs: Mapping[str, Any]) -> Curve:
        return self._curves[_key(knobs)]

    @property
    def lowest(self) -> float:
        """The lowest validation loss anywhere in the grid."""
        return min(report.loss for curve in self._curves.values() for report in curve)

    @property
    def tokens(self) -> int:
        """Tokens of the whole grid."""
        return sum(curve[-1].tokens for curve in self._curves.values())

    def near(self, target: float) -> int:
        """Grid points that reach a loss."""
        return sum(min(one.loss for one in curve) <= target for curve in self._curves.values())

    def __len__(self) -> int:
        return len(self._curves)

    def fill(self) -> float:
        """Train what is missing; gives the CPU-seconds that took."""
        began = time.process_time()
        points = [knobs for knobs in self._spec.search_space.configurations()
                  if _key(knobs) not in self._curves]  # fmt: skip
        engine = build_engine(self._spec.base) if points else None
        for start in range(0, len(points), PACK):
            for knobs, curve in zip(
                points[start : start + PACK],
                train(engine, self._spec, points[start : start + PACK]),
                strict=True,
            ):
                self._curves[_key(knobs)] = curve
            self._save()
        return time.process_time() - began

    @property
    def _digest(self) -> str:
        return self._spec.digest

    def _save(self) -> None:
        self._file.write_text(json.dumps({"digest": self._digest, "curves": self._curves}))


def _key(knobs: Mapping[str, Any]) -> str:
    return json.dumps(dict(knobs), sort_keys=True)


def train(engine: Engine, spec: SweepSpec, points: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """Train configurations side by side; a curve ends where a loss is not finite."""
    curves: dict[str, list[TrialReport]] = {_key(knobs): [] for knobs in points}
    for knobs in points:
        engine.join(_key(knobs), build_trial(spec, dict(knobs)))
    going = list(curves)
    for step in range(1, spec.horizon + 1):
        done = engine.step(going)
        going = [seat for seat in going if done[seat].is_finite]
        for seat in going if step % spec.eval.every == 0 else ():
            loss = engine.evaluate(seat)["eval_loss"]
            curves[seat].append(TrialReport(step, done[seat].tokens, loss))
    for seat in curves:
        engine.leave(seat)
    return list(curves.values())


# ----------------------------------------------------------------------------------- the search


@dataclass
class Seated:
    """A trial in its seat; it has reported so many points of its curve."""

    ray_id: str
    config: dict[str, Any]
    curve: Curve
    reported: int = 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search took; infinitely much where it ended without the target.

    Attributes:
        tokens: Of all trials until then, as a part of what the whole grid takes.
        trials: Trials started until then.
    """

    tokens: float
    trials: float


def search(spec: SweepSpec, curves: Curves, target: float) -> Found:
    """Replay curves, as the searcher and the scheduler choose, until one is at the target."""
    scheduler = build_scheduler(spec)
    searcher = OptunaSearcher(spec, scheduler=scheduler)
    seated: list[Seated] = []
    started = tokens = 0
    is_over = False
    while seated or not is_over:
        while not is_over and len(seated) < SEATS:
            config = searcher.suggest(f"t{started}")
            is_over = config == Searcher.FINISHED
            if not is_over:
                seated.append(Seated(f"t{started}", config, curves.of(config["knobs"])))
                started += 1
        for trial in list(seated):
            before = trial.curve[trial.reported - 1].tokens if trial.reported else 0
            report = trial.curve[trial.reported]
            trial.reported += 1
            tokens += report.tokens - before
            if report.loss <= target:
                return Found(tokens=tokens / curves.tokens, trials=started)
            if _is_ended(trial, report, searcher, scheduler):
                seated.remove(trial)
    return Found(tokens=math.inf, trials=math.inf)


def _is_ended(
    trial: Seated, report: TrialReport, searcher: OptunaSearcher, scheduler: TrialScheduler
) -> bool:
    """Tell both of a report, as Ray Tune does; whether the trial is through."""
    result: dict[str, Any] = {"step": report.step, "eval_loss": report.loss}
    number = SimpleNamespace(config=trial.config)
    if trial.reported == len(trial.curve):
        result |= {"outcome": "completed", "reason": "trained"}
        scheduler.on_trial_complete(None, number, result)
        searcher.on_trial_complete(trial.ray_id, result)
        return True
    searcher.on_trial_result(trial.ray_id, result)
    if scheduler.on_trial_result(None, number, result) == TrialScheduler.STOP:
        searcher.on_trial_complete(trial.ray_id, result)
        return True
    return False


# ------------------------------------------------------------------------------------- the table


def compare(folder: Path, curves: Curves, seeds: int, **settings: Any) -> list[dict[str, Any]]:
    """Each method's medians over the seeds, with the quartiles of its tokens."""
    target = (1 + WITHIN) * curves.lowest
    rows: list[dict[str, Any]] = []
    for name, (algorithm, schedule) in METHODS.items():
        found = [
            search(
                build_spec(folder, algorithm=algorithm, schedule=schedule, seed=seed, **settings),
                curves,
                target,
            )
            for seed in range(seeds)
        ]
        low, middle, high = _quartiles([one.tokens for one in found])
        rows.append(
            {
                "method": name,
                "reached": sum(math.isfinite(one.tokens) for one in found),
                "tokens": middle,
                "low": low,
                "high": high,
                "trials": statistics.median(one.trials for one in found),
            }
        )
    return [row | {"ratio": row["tokens"] / rows[0]["tokens"]} for row in rows]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Those of the values themselves: there are infinite ones, which have no mean."""
    ordered = sorted(values)
    last = len(ordered) - 1
    low, middle, high = (ordered[round(last * part)] for part in (0.25, 0.5, 0.75))
    return low, middle, high


def table(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    lines = [
        "| search | tokens, grid = 1 | part of the grid's tokens (quartiles) | trials | reached |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['method']} | {row['ratio']:.2f} | {row['tokens']:.1%} "
        f"({row['low']:.1%} to {row['high']:.1%}) | {row['trials']:.0f} "
        f"| {row['reached']} of {seeds} |"
        for row in rows
    ]
    return "\n".join(lines)


def run(folder: Path, seeds: int, **settings: Any) -> tuple[list[dict[str, Any]], Curves]:
    """Fill the curves and compare; settings are those of `build_spec`."""
    if not (folder / "base").exists():
        write_inputs(folder)
    curves = Curves(build_spec(folder, **settings), folder / "curves.json")
    cpu_s = curves.fill()
    target = (1 + WITHIN) * curves.lowest
    print(f"{len(curves)} grid points, trained in {cpu_s:.0f} CPU-seconds; lowest loss "
          f"{curves.lowest:.4f}; {curves.near(target)} of them come within 1 %")  # fmt: skip
    return compare(folder, curves, seeds, **settings), curves


def digest_of(folder: Path) -> str:
    """Of the curves: two runs that agree in it compared the searches on the same ones."""
    return hashlib.sha256((folder / "curves.json").read_bytes()).hexdigest()[:12]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=21)
    parser.add_argument("--folder", type=Path, default=Path("runs/search-efficiency"))
    parser.add_argument("--out", type=Path, help="where all numbers go, as JSON")
    args = parser.parse_args()
    rows, _ = run(args.folder, args.seeds)
    print(table(rows, args.seeds))
    print(f"curves {digest_of(args.folder)}")
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
