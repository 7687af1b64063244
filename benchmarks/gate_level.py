"""How often the gate promotes an adapter that is equal in truth, or better, by several intervals.

Differences of rows are drawn from distributions with mean 0, symmetric or skewed, and shifted for
power. A lower end above 0 counts as a promotion. `both` is the wider of the sign-flip test and the
skewness-corrected t: the gate's. Bootstraps draw 1,000 times.

    python benchmarks/gate_level.py --sets 1000
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri

from registry.evaluations.gate import PromotionRule, confidence_of
from registry.evaluations.improvement import sign_flip_ends, student_ends

LEVEL = 0.025
ROWS = (5, 8, 12, 20, 40, 100, 200)
DRAWS = 1000
FLIPS = 1 << 12
METHODS = ("percentile", "BCa", "bootstrap-t", "sign flips", "corrected t", "both")

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

EQUAL: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Laplace": lambda rng, shape: rng.laplace(size=shape),
    "t, 2 degrees": lambda rng, shape: rng.standard_t(2, size=shape),
    "Cauchy": lambda rng, shape: rng.standard_cauchy(size=shape),
    "right or wrong, 50 % differ": lambda rng, shape: rng.choice(
        [-1.0, 0, 1], p=[0.25, 0.5, 0.25], size=shape
    ),
    "right or wrong, 10 % differ": lambda rng, shape: rng.choice(
        [-1.0, 0, 1], p=[0.05, 0.9, 0.05], size=shape
    ),
    "normal, 5 % differ": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.05),
    "gamma, skewness -1.4": lambda rng, shape: 2 - rng.gamma(2, size=shape),
    "exponential, skewness -2": lambda rng, shape: 1 - rng.exponential(size=shape),
    "exponential, skewness 2": lambda rng, shape: rng.exponential(size=shape) - 1,
    "lognormal, skewness -6.2": lambda rng, shape: np.exp(0.5) - rng.lognormal(size=shape),
}

BETTER = ((8, 2.0), (20, 1.0), (80, 0.5), (200, 0.3))
"""Rows and improvement in standard deviations of normal differences."""


def bootstraps(of: np.ndarray, level: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Whether the percentile, BCa and bootstrap-t ends lie above 0, each of shape (sets,)."""
    rows = len(of)
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=DRAWS) / rows
    mean, spread = of.mean(axis=0), of.std(axis=0)
    rest = of - mean
    shift = counts @ rest
    drawn = np.sqrt(np.maximum(counts @ rest**2 - shift**2, 0))
    ordered = np.sort(shift, axis=0) + mean
    middle = (shift < -1e-12).mean(axis=0) + (np.abs(shift) <= 1e-12).mean(axis=0) / 2
    bias = ndtri(np.clip(middle, 1 / DRAWS, 1 - 1 / DRAWS))
    with np.errstate(invalid="ignore", divide="ignore"):
        skew = np.nan_to_num((rest**3).sum(axis=0) / (6 * (rest**2).sum(axis=0) ** 1.5))
        student = np.where(drawn > 1e-9, shift / drawn, np.sign(shift) * np.inf)
        student = np.where(np.isnan(student), 0.0, student)
        at = ndtr(bias + (bias + ndtri(level)) / (1 - skew * (bias + ndtri(level))))
        place = np.clip(np.ceil(at * DRAWS).astype(int) - 1, 0, DRAWS - 1)
        quantile = np.sort(student, axis=0)[round((1 - level) * DRAWS) - 1]
        t_end = np.where(spread > 0, mean - quantile * spread, mean)
    sets = np.arange(of.shape[1])
    return [ordered[round(level * DRAWS) - 1] > 1e-9, ordered[place, sets] > 1e-9, t_end > 1e-9]


def promotions(of: np.ndarray, level: float, rng: np.random.Generator) -> list[float]:
    """Share of sets that each method promotes, in the order of `METHODS`."""
    per = np.ones(len(of))
    flips = sign_flip_ends(of, per, level, draws=FLIPS).low > 1e-9
    student = student_ends(of, per, level).low > 1e-9
    found = [*bootstraps(of, level, rng), flips, student, flips & student]
    return [float(one.mean()) for one in found]


def repeated(rows: int, sets: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Share of sets where one of ten equal challengers is promoted: percentile, both, spent."""
    champion = rng.laplace(size=(rows, sets))
    once = [np.zeros(sets, dtype=bool) for _ in range(3)]
    per = np.ones(rows)
    for number in range(1, 11):
        of = champion - rng.laplace(size=(rows, sets))
        once[0] |= bootstraps(of, LEVEL, rng)[0]
        spent = (1 - confidence_of(number, PromotionRule())) / 2
        for place, level in ((1, LEVEL), (2, spent)):
            flips = sign_flip_ends(of, per, level, draws=4 * FLIPS).low
            once[place] |= np.minimum(flips, student_ends(of, per, level).low) > 1e-9
    percentile, both, spending = (float(one.mean()) for one in once)
    return percentile, both, spending


def row_of(name: str, rows: int, shares: list[float]) -> str:
    return f"| {name} | {rows} | " + " | ".join(f"{100 * one:.1f}" for one in shares) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores")
    heading = " | ".join(METHODS)
    rule = "---:|" * (len(METHODS) + 1)
    print(f"\nEqual, level 2.5 %: % promoted\n\n| differences | rows | {heading} |\n|---|{rule}")
    for name, draw in EQUAL.items():
        for rows in ROWS:
            of = draw(rng, (rows, args.sets))
            print(row_of(name, rows, promotions(of, LEVEL, rng)), flush=True)
    print(f"\nBetter: % promoted\n\n| differences | rows | {heading} |\n|---|{rule}")
    for rows, size in BETTER:
        of = rng.normal(size, 1.0, (rows, args.sets))
        for level, words in ((LEVEL, "2.5 %"), (LEVEL / 2, "1.25 %")):
            print(row_of(f"{size:g} sd, level {words}", rows, promotions(of, level, rng)))
    print("\nTen equal challengers: % with a promotion\n")
    print("| rows | percentile, 2.5 % each | both, 2.5 % each | both, level spent |")
    print("|---:|---:|---:|---:|")
    for rows in (8, 12, 20, 40):
        shares = repeated(rows, args.sets, rng)
        print(f"| {rows} | " + " | ".join(f"{100 * one:.1f}" for one in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
