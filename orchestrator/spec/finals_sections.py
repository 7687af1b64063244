"""Sections of a sweep file for the best trials: `finals` and `register`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from orchestrator.errors import SweepSpecError
from orchestrator.metrics import TRIAL_METRICS
from orchestrator.spec.complaint import require
from orchestrator.spec.sections import require_slug
from trainables.contract import SAME_UNQUANTIZED, SERVING_FORMS, TRAINED, ServingForm
from trainables.errors import SpecError
from trainables.evaluation_spec import EvaluationSpec

License = Literal["base", "data", "adapter"]

_STRICT: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, kw_only=True)
class FinalsSpec:
    """Further training and evaluation of the best configurations.

    Attributes:
        top: Number of configurations in the finals.
        seeds: Number of repeats of each configuration, to the full horizon, with new seeds; 0
            evaluates the search's own adapters on test rows, without a confidence interval.
        confidence: Level of the interval of a mean over seeds.
        forms: Serving forms in which each finalist's adapter is evaluated, row by row. A base
            without quantization has `trained` and `merged` only; a base with quantized files has
            `trained` only.
        max_new_tokens: Tokens of a greedy completion of each row; 0 generates nothing.
        pattern: Regular expression; its matches in completion and reference are compared.
        choices: Possible answers; the first one in a completion is compared with the first one in
            the reference.
        metrics: Functions of completions and references, as `module:function` or
            `path/to/file.py:function`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    top: int = 3
    seeds: int = 2
    confidence: float = 0.95
    forms: tuple[ServingForm, ...] = SERVING_FORMS
    max_new_tokens: int = 0
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.top >= 1, "finals.top", self.top, ">= 1", "Take at least the best.")
        require(self.seeds >= 0, "finals.seeds", self.seeds, ">= 0", "Use 0 for none.")
        _require_level("finals.confidence", self.confidence)
        require(
            len(set(self.forms)) == len(self.forms),
            "finals.forms",
            list(self.forms),
            "each form once",
            "Remove the repeated one.",
        )
        _ = self.evaluation

    @property
    def evaluation(self) -> EvaluationSpec:
        """Settings of each form's evaluation.

        Raises:
            SweepSpecError: A value cannot work.
        """
        try:
            return EvaluationSpec(
                max_new_tokens=self.max_new_tokens,
                pattern=self.pattern,
                choices=self.choices,
                metrics=self.metrics,
            )
        except SpecError as error:
            raise SweepSpecError(str(error).replace("evaluation.", "finals.")) from error


@dataclass(frozen=True, kw_only=True)
class RegisterSpec:
    """Registration of the best adapters; without the section, no adapter is registered.

    Attributes:
        name: Registered model of the versions; by default, the sweep's name.
        top: Number of registered finalists, one adapter each.
        form: Serving form in which the versions are loaded and compared.
        promote: Whether the best version is a candidate for champion.
        metric: Measure that the gate compares: `loss`, `accuracy`, `bits_per_byte` or any other
            measure of the finals; by default, the measure of the objective, and `loss` for a
            metric of yours.
        min_improvement: Required improvement of a candidate over the champion.
        confidence: Level of the interval that must lie beyond `min_improvement`.
        licenses: Licenses of base, data and adapter, for the card.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str = ""
    top: int = 1
    form: ServingForm = "trained"
    promote: bool = True
    metric: str = ""
    min_improvement: float = 0.0
    confidence: float = 0.95
    licenses: Mapping[License, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.top >= 1, "register.top", self.top, ">= 1", "Register at least the best.")
        if self.name:
            require_slug("register.name", self.name)
        require(
            math.isfinite(self.min_improvement) and self.min_improvement >= 0,
            "register.min_improvement",
            self.min_improvement,
            "a finite number >= 0",
            "Use 0 for any improvement beyond noise.",
        )
        _require_level("register.confidence", self.confidence)

    def measure(self, objective: str) -> str:
        """The measure for the gate; by default that of the objective, for a user's metric `loss`.

        Evaluations of versions do not compute `eval.metric`: name a function in `finals.metrics`
        and its measure in `metric` to compare versions by it.
        """
        known = {str(name): one.measure for name, one in TRIAL_METRICS.items()}
        return self.metric or known.get(objective, "loss")


def same_form(form: str, quantization: str) -> str:
    """The serving form with the same weights: without quantization, some forms are equal."""
    return SAME_UNQUANTIZED.get(form, form) if quantization == "none" else form


def forms_of(
    finals: FinalsSpec, quantization: str, *, is_prequantized: bool = False
) -> tuple[ServingForm, ...]:
    """The serving forms to evaluate for an adapter on such a base.

    Without quantization, some forms are equal. A base with quantized files has one form only.
    """
    if is_prequantized:
        return tuple(form for form in finals.forms if form == TRAINED)
    if quantization != "none":
        return finals.forms
    return tuple(form for form in finals.forms if form not in SAME_UNQUANTIZED)


def require_gate(finals: FinalsSpec, register: RegisterSpec) -> None:
    """Refuse a promotion gate without an evaluation in the finals.

    Raises:
        SweepSpecError: The finals do not evaluate the form, or do not measure the metric.
    """
    require(
        not finals.forms or register.form in finals.forms,
        "register.form",
        register.form,
        f"one of finals.forms ({', '.join(finals.forms)})",
        "Add it to finals.forms: the gate compares adapters in the form that is served.",
    )
    known = finals.evaluation.measures
    require(
        not register.metric or register.metric in known,
        "register.metric",
        register.metric,
        f"{', '.join(known)}, which the finals measure",
        "Choose one of these.",
    )


def require_trained_form(finals: FinalsSpec, register: RegisterSpec | None, model: str) -> None:
    """Refuse forms of unquantized weights for a base whose own files are quantized.

    Raises:
        SweepSpecError: The finals lack the form `trained`, or adapters are registered in another.
    """
    why = f"trained for {model!r}, whose own files are quantized"
    remedy = "Name trained, or the original, unquantized weights in base.model."
    require(
        not finals.forms or TRAINED in finals.forms,
        "finals.forms",
        list(finals.forms),
        why,
        remedy,
    )
    if register is not None:
        require(register.form == TRAINED, "register.form", register.form, why, remedy)


def _require_level(where: str, level: float) -> None:
    require(0.5 <= level < 1, where, level, "0.5 <= level < 1", "Use 0.95.")
