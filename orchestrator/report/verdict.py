"""The verdict of a sweep: two or three sentences for a reader who knows no field terms.

The same sentences stand first in the terminal, on the report page, on the card of a version and
in MLflow's descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.finals.form_scores import FormScore, list_form_scores
from orchestrator.finals.standings import Separation, Standing
from orchestrator.report.measurements import BaseComparison, Generated
from orchestrator.wording import format_metric
from trainables.contract import TRAINED, Mode

_SLIGHT = 0.02
"""Differences of serving forms below this share are told as one."""
_FORM_WORDS = {
    "unquantized": "unquantized",
    "merged": "merged",
    "requantized": "merged and quantized again",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a sweep found.

    Attributes:
        sentences: Winner, quality and serving form; each is a whole sentence.
        warnings: Reasons to doubt the winner, in whole sentences; empty for a sound one.
    """

    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """Sentences and warnings as one paragraph."""
        return " ".join([*self.sentences, *(f"Warning: {one}" for one in self.warnings)])

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The facts that a verdict rests on.

    Attributes:
        trial: The trial of the search with the best settings; `None` without an adapter.
        value: The objective of the best adapter on validation rows.
        metric: The objective.
        mode: Whether less or more of the objective is better.
        is_over: Whether no training is left.
        finals: The finalists with measured runs, best first.
        separation: Whether the first finalist is better than the second beyond noise.
        comparisons: Base and best adapter on the same rows.
        generated: Completions of the best adapter; `None` if none were generated.
        forms: Metrics of the best adapter by serving form.
        stored_form: Stored form of the base that the adapter was trained on.
        has_answers: Whether rows have answers, so that an accuracy of 0 is a failure.
    """

    trial: int | None
    value: float | None
    metric: str
    mode: Mode
    is_over: bool = True
    finals: Sequence[Standing] = ()
    separation: Separation | None = None
    comparisons: Sequence[BaseComparison] = ()
    generated: Generated | None = None
    forms: Mapping[str, Mapping[str, float]]
    stored_form: str = ""
    has_answers: bool = True


def reach_verdict(evidence: Evidence) -> Verdict:
    """The verdict that the evidence allows."""
    if evidence.trial is None:
        wanting = "ended" if evidence.is_over else "has ended yet"
        return Verdict(
            sentences=(f"No adapter: no trial {wanting} with a finite {evidence.metric}.",)
        )
    sentences = [_name_winner(evidence), _tell_quality(evidence), _tell_serving(evidence)]
    return Verdict(
        sentences=tuple(sentence for sentence in sentences if sentence),
        warnings=tuple(_find_doubts(evidence)),
    )


# ---------------------------------------------------------------------------------------- winner


def _name_winner(evidence: Evidence) -> str:
    first = f"Trial {evidence.trial}"
    finals = evidence.finals
    value = f"{evidence.metric} {format_metric(evidence.value)}"
    if not evidence.is_over:
        return f"{first} leads so far, with {value}."
    if not finals:
        return f"{first} leads the search with {value}; the rows that decide were not evaluated."
    runs = [len(standing.values) for standing in finals[:2]]
    if len(finals) < 2 or evidence.separation is None:
        seeds = "a single run" if runs[0] < 2 else f"{runs[0]} seeds"
        return f"{first} won, with {seeds}."
    second = f"trial {finals[1].trial.number}"
    if min(runs) < 2:
        return (
            f"{first} won over {second}, but with a single run each the difference can be noise."
            if max(runs) < 2
            else f"{first} won over {second}, but with a single run of one of them the difference "
            "can be noise."
        )
    seeds = f"{runs[0]} seeds each" if runs[0] == runs[1] else f"{runs[0]} and {runs[1]} seeds"
    if evidence.separation.is_clear:
        return f"{first} won over {second} beyond noise, {seeds}."
    return f"{first} won; {second} is as good within noise, {seeds}."


# --------------------------------------------------------------------------------------- quality


def _tell_quality(evidence: Evidence) -> str:
    shown = next(iter(_headlines(evidence)), None)
    if shown is None:
        return ""
    show = _percent if shown.measure.endswith("accuracy") else format_metric
    base = "" if shown.base is None else f", base {show(shown.base)}"
    measure = shown.measure.replace("_", " ")
    adapter = "-" if shown.adapter is None else show(shown.adapter)
    return f"{shown.split.capitalize()} {measure} {adapter}{base}."


def _headlines(evidence: Evidence) -> Iterator[BaseComparison]:
    """Measures for a sentence, the clearest first: accuracy if any row is right, else the loss."""
    held_out = _held_out(evidence)
    for measure in ("accuracy", "loss", _measure_of(evidence.metric)):
        one = held_out.get(measure)
        if one is not None and one.adapter is not None:
            is_telling = measure != "accuracy" or one.adapter > 0 or (one.base or 0.0) > 0
            if is_telling:
                yield one


def _held_out(evidence: Evidence) -> dict[str, BaseComparison]:
    """Comparisons by measure, on test rows if the adapter was evaluated on test rows."""
    measured = [one for one in evidence.comparisons if one.adapter is not None]
    last = measured[-1].split if measured else ""
    return {one.measure: one for one in measured if one.split == last}


def _measure_of(metric: str) -> str:
    return metric.partition("_")[2]


def _percent(share: float) -> str:
    """`69%`; a share near 0% or 100% has a decimal, as it must not be mistaken for all or none."""
    is_near_an_end = 0 < share < 0.01 or 0.99 < share < 1
    return f"{share:.1%}" if is_near_an_end else f"{share:.0%}"


# --------------------------------------------------------------------------------------- serving


def _tell_serving(evidence: Evidence) -> str:
    """The form to serve the adapter in; empty without intervals of other forms."""
    scores = [one for one in list_form_scores({0: evidence.forms}) if one.form != TRAINED]
    measures = dict.fromkeys(one.measure for one in scores)
    wanted = _measure_of(evidence.metric)
    measure = wanted if wanted in measures else "loss"
    known = [one for one in scores if one.measure == measure and _has_interval(one)]
    if not known:
        return ""
    base = _base_words(evidence.stored_form)
    sign = 1.0 if evidence.mode == "min" or measure == "loss" else -1.0
    better = [one for one in known if _least(one, -sign) > 0]
    if better:
        best = max(better, key=lambda one: -sign * _change(one))
        return f"Serve {_in_form(best)}: its {measure} is {_size(best)} than {base}."
    worse = [one for one in known if _least(one, sign) > 0]
    if not worse:
        forms = ", ".join(_FORM_WORDS.get(one.form, one.form) for one in known)
        return f"Serve it in any measured form ({forms} too): none differs beyond noise."
    most = max(worse, key=_relative)
    if _relative(most) < _SLIGHT:
        return (
            f"Serve it in any measured form: its {measure} is at most {_size(most)} than {base}."
        )
    said, *others = worse
    rest = "".join(f", {_in_form(one)} {_size(one)}" for one in others)
    return f"Serve {base}: {_in_form(said)} its {measure} is {_size(said)}{rest}."


def _has_interval(score: FormScore) -> bool:
    return score.difference is not None and None not in score.difference


def _least(score: FormScore, sign: float) -> float:
    """The least difference that the interval allows, in the direction of the sign."""
    low, high = score.difference[1:] if score.difference is not None else (None, None)
    return min(sign * (low or 0.0), sign * (high or 0.0))


def _change(score: FormScore) -> float:
    return 0.0 if score.difference is None else score.difference.value


def _size(score: FormScore) -> str:
    """`53% higher`, or `12 points lower` for a share of rows."""
    change = _change(score)
    direction = "higher" if change > 0 else "lower"
    if _is_share(score):
        return f"{abs(change) * 100:.2g} points {direction}"
    return f"{_percent(_relative(score))} {direction}"


def _relative(score: FormScore) -> float:
    """The size of a difference: relative to the trained form, or as a share of rows."""
    change = _change(score)
    before = 1.0 if _is_share(score) else score.score.value - change
    return abs(change / before) if before else abs(change)


def _is_share(score: FormScore) -> bool:
    return score.measure.endswith("accuracy")


def _in_form(score: FormScore) -> str:
    return _FORM_WORDS.get(score.form, score.form)


def _base_words(stored_form: str) -> str:
    known = "unquantized" if stored_form in ("", "none") else stored_form
    return f"on the {known} base"


# ---------------------------------------------------------------------------------------- doubts


def _find_doubts(evidence: Evidence) -> Iterator[str]:
    held_out = _held_out(evidence)
    measure = _measure_of(evidence.metric)
    judged = held_out.get(measure) or held_out.get("loss")
    if judged is not None and judged.difference is not None:
        sign = 1.0 if evidence.mode == "min" or judged.measure == "loss" else -1.0
        if sign * judged.difference >= 0:
            yield (
                f"the adapter is no better than the bare base: {judged.split} "
                f"{judged.measure.replace('_', ' ')} {format_metric(judged.adapter)}, base "
                f"{format_metric(judged.base)}."
            )
    right = held_out.get("accuracy")
    if right is not None and right.adapter == 0 and evidence.has_answers:
        yield f"the adapter is right on none of the {right.split} rows."
    if evidence.generated is not None and evidence.generated.warning:
        yield evidence.generated.warning
