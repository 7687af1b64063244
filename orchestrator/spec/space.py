"""The search space of a sweep: settings to search, with their values.

A knob is a dotted setting of a trial (`lora.rank`). In a sweep file, a knob has a distribution, an
expression of other settings, or a constant:

    lora.rank: {choice: [4, 8, 16]}
    optim.learning_rate: {log_uniform: [3.0e-4, 5.0e-3]}    # or uniform
    lora.dropout: {uniform: [0.0, 0.1], when: {lora.rank: 16}}
    seed: {int: [0, 9]}                                     # or log_int
    lora.alpha: {tied: "2 * lora.rank"}
    optim.batch_size: 16

Knobs become Optuna parameters of the same name; lists become JSON, as Optuna's categories are
primitive. Knobs together with the sweep's fixed settings make a `TrialSpec`. If the `when` of a
knob does not hold, the knob is not in the configuration, and the trial has the fixed setting.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution

from orchestrator.errors import SweepSpecError
from orchestrator.spec.complaint import complaint, require, unknown
from orchestrator.spec.conditions import Condition, parents_first, parse_condition, require_taken
from orchestrator.spec.distributions import (
    Distribution,
    encode_value,
    parse_distribution,
    parse_value,
)
from orchestrator.spec.settings import (
    ALPHA_PER_RANK,
    KNOBS,
    NUMBERS,
    SETTINGS,
    FixedSettings,
    assemble,
    flatten,
    require_knob,
)
from orchestrator.spec.tied import Tie, parse_tie
from trainables.memory_settings import deciding_settings
from trainables.spec import TrialSpec

__all__ = [
    "ALPHA_PER_RANK",
    "KNOBS",
    "MAX_LISTED",
    "SearchSpace",
    "describe",
    "parse_space",
    "searched_names",
    "split_constants",
]

MAX_LISTED = 100_000
"""Maximum number of configurations of a space to list."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The searched knobs with their conditions, ties and rules.

    Attributes:
        knobs: Distributions of the searched knobs, in the order of the sweep file.
        fixed: Settings of the sweep outside of the space.
        conditions: Conditions under which a knob is searched; a knob without one always is.
        ties: Settings computed from others, in topological order.
        forbidden: Combinations that no trial may have.
    """

    knobs: Mapping[str, Distribution]
    fixed: FixedSettings = field(repr=False)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    ties: Mapping[str, Tie] = field(default_factory=dict)
    forbidden: tuple[Condition, ...] = ()

    @cached_property
    def size(self) -> int | None:
        """Number of allowed configurations; `None` for too many to list, or infinitely many."""
        if not self.is_short:
            return None
        return sum(1 for _ in self.configurations())

    @property
    def is_finite(self) -> bool:
        """Whether every knob has finitely many values."""
        return all(knob.size is not None for knob in self.knobs.values())

    @cached_property
    def is_short(self) -> bool:
        """Whether there are at most `MAX_LISTED` configurations, refused ones included."""
        if not self.is_finite:
            return False
        always = [
            knob.size or 0 for name, knob in self.knobs.items() if name not in self.conditions
        ]
        if math.prod(always) > MAX_LISTED:
            return False
        listed = itertools.islice(self.expand(self.order), MAX_LISTED + 1)
        return sum(1 for _ in listed) <= MAX_LISTED

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Topological order of the knobs: each knob after the knobs in its `when`."""
        needs = {
            name: self.conditions[name].allowed if name in self.conditions else ()
            for name in self.knobs
        }
        return parents_first(needs, ".when")

    def active(self, knobs: Mapping[str, Any]) -> list[str]:
        """The active knobs of a configuration, in the order of the file."""
        known: dict[str, Any] = {}
        names = set()
        for name in self.order:
            if self.is_active(name, known):
                names.add(name)
                if name in knobs:
                    known[name] = knobs[name]
        return [name for name in self.knobs if name in names]

    def is_active(self, name: str, known: Mapping[str, Any]) -> bool:
        """Whether a knob is active, given the active knobs before it."""
        condition = self.conditions.get(name)
        return condition is None or condition.holds(known)

    def distributions(self, knobs: Mapping[str, Any] | None = None) -> dict[str, BaseDistribution]:
        """Optuna's distributions of a configuration's active knobs, or of all."""
        names = self.knobs if knobs is None else self.active(knobs)
        return {name: self.knobs[name].build() for name in names}

    def decode(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knobs of a trial from Optuna's parameters."""
        return {
            name: knob.decode(params[name]) for name, knob in self.knobs.items() if name in params
        }

    def encode(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters from the knobs of a trial.

        Raises:
            KeyError: A knob is not in this space.
        """
        strangers = [name for name in knobs if name not in self.knobs]
        if strangers:
            raise KeyError(strangers[0])
        return {name: encode_value(knobs[name]) for name in self.knobs if name in knobs}

    def suggest(self, draw: Callable[[str, BaseDistribution], Any]) -> dict[str, Any]:
        """A configuration from `draw`, called for each active knob in `order`.

        The configuration may be refused by `refuse`.
        """
        drawn: dict[str, Any] = {}
        for name in self.order:
            if self.is_active(name, drawn):
                knob = self.knobs[name]
                drawn[name] = knob.decode(draw(name, knob.build()))
        return self._in_file_order(drawn)

    def settle(self, knobs: Mapping[str, Any], where: str = "knobs") -> dict[str, Any]:
        """Written knobs in the types of the space, without inactive knobs.

        Args:
            knobs: All knobs of a configuration or some of them.
            where: Dotted name for messages.

        Raises:
            SweepSpecError: A knob is not searched, or its value is outside of the space.
        """
        settled = {
            name: self._settle_value(f"{where}.{name}", name, written)
            if name in self.knobs
            else self._refuse_name(where, name, written)
            for name, written in knobs.items()
        }
        absent: set[str] = set()
        for name in self.order:
            condition = self.conditions.get(name)
            if condition is not None and condition.fails(settled, absent):
                absent.add(name)
                settled.pop(name, None)
        return self._in_file_order(settled)

    def refuse(self, knobs: Mapping[str, Any]) -> str:
        """Reason to refuse a configuration, as a sentence; empty if the configuration is allowed.

        Rules of `forbid` come first.
        """
        try:
            changes = self.changes(knobs)
            values = ChainMap(changes, self.fixed_values)
            for i, rule in enumerate(self.forbidden):
                if rule.holds(values):
                    return f"forbid[{i}]: no trial may have {rule}"
            assemble(self.fixed, changes)
        except SweepSpecError as error:
            return str(error)
        return ""

    def changes(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Settings that a configuration changes: active knobs and tied settings.

        Raises:
            SweepSpecError: A tied setting has no value.
        """
        changed = {name: knobs[name] for name in self.active(knobs) if name in knobs}
        values = ChainMap(changed, self.fixed_values)
        for name, tie in self.ties.items():
            # Alpha per rank has no fixed value: if the knob is inactive, alpha stays fixed.
            if ALPHA_PER_RANK not in tie.names or ALPHA_PER_RANK in changed:
                changed[name] = tie.compute(values)
        return changed

    def configurations(self) -> Iterator[dict[str, Any]]:
        """All allowed configurations of a finite space, each once.

        Raises:
            ValueError: The space is infinite.
        """
        if not self.is_finite:
            raise ValueError("a range of numbers has no list of configurations")
        for knobs in self.expand(self.order):
            if not self.refuse(knobs):
                yield self._in_file_order(knobs)

    def expand(
        self,
        names: Sequence[str],
        known: Mapping[str, Any] | None = None,
        only: Mapping[str, Sequence[Any]] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """All combinations of values for the named knobs, including refused combinations.

        Args:
            names: Knobs with finitely many values, in topological order.
            known: Values of earlier knobs.
            only: Values to which some knobs are limited.
        """
        chosen = dict(known or {})
        if not names:
            yield chosen
            return
        name, rest = names[0], names[1:]
        if not self.is_active(name, chosen):
            yield from self.expand(rest, chosen, only)
            return
        for value in (only or {}).get(name, self.knobs[name].listed()):
            yield from self.expand(rest, {**chosen, name: value}, only)

    @cached_property
    def fixed_values(self) -> dict[str, Any]:
        """`fixed` by dotted name."""
        return flatten(self.fixed)

    def _settle_value(self, where: str, name: str, written: object) -> Any:
        value = parse_value(where, written, KNOBS[name])
        knob = self.knobs[name]
        require(
            knob.holds(value), where, written, knob.allowed, f"Use one of these in space.{name}."
        )
        return value

    def _refuse_name(self, where: str, name: str, written: object) -> Any:
        if name not in SETTINGS:
            raise unknown(where, name, self.knobs)
        kind = "computed from others" if name in self.ties else "the same in all trials"
        searched = ", ".join(self.knobs) or "none"
        raise complaint(
            f"{where}.{name}",
            written,
            f"knobs that are searched ({searched})",
            f"Remove it: it is {kind}.",
        )

    def _in_file_order(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: knobs[name] for name in self.knobs if name in knobs}


def split_constants(space: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constants of a written space, and the space without constants.

    Raises:
        SweepSpecError: A name is not a knob, or a value is not of the setting's type.
    """
    for name in space:
        require_knob(name)
    require(
        not {"lora.alpha", ALPHA_PER_RANK} <= space.keys(),
        f"space.{ALPHA_PER_RANK}",
        space.get(ALPHA_PER_RANK),
        "one of lora.alpha and lora.alpha_per_rank",
        "Remove one of the two knobs.",
    )
    constants: dict[str, Any] = {}
    varied: dict[str, Any] = {}
    for name, written in space.items():
        # A list is a constant only for lora.targets; for others, a distribution without a name.
        is_list = isinstance(written, list | tuple) and name != "lora.targets"
        if isinstance(written, Mapping) or is_list:
            varied[name] = written
        elif name == ALPHA_PER_RANK:
            factor = parse_value(f"space.{name}", written, float)
            varied["lora.alpha"] = {"tied": f"{factor!r} * lora.rank"}
        else:
            constants[name] = parse_value(f"space.{name}", written, KNOBS[name])
    return constants, varied


def parse_space(
    mapping: Mapping[str, Any], fixed: FixedSettings, rules: Sequence[Mapping[str, Any]] = ()
) -> SearchSpace:
    """Parse a space without constants, and the sweep's `forbid`.

    Args:
        mapping: Knobs with distributions or expressions as written.
        fixed: Settings of the sweep outside of the space.
        rules: `forbid` as written.

    Raises:
        SweepSpecError: A knob, a condition, an expression or a rule is impossible.
    """
    written_whens = {}
    knobs: dict[str, Distribution] = {}
    ties: dict[str, Tie] = {}
    for name, written in mapping.items():
        where, hint = f"space.{require_knob(name)}", KNOBS[name]
        if isinstance(written, Mapping) and set(written) == {"tied"}:
            ties[name] = parse_tie(where, written["tied"], hint, NUMBERS)
            continue
        if isinstance(written, Mapping) and "when" in written and "tied" not in written:
            written_whens[name] = written["when"]
            written = {key: value for key, value in written.items() if key != "when"}
        knobs[name] = parse_distribution(where, written, hint)
    if ALPHA_PER_RANK in mapping:
        ties["lora.alpha"] = parse_tie(
            f"space.{ALPHA_PER_RANK}",
            f"{ALPHA_PER_RANK} * lora.rank",
            float,
            (ALPHA_PER_RANK, "lora.rank"),
        )
    order = parents_first({name: tie.names for name, tie in ties.items()}, ".tied")
    values = flatten(fixed)
    space = SearchSpace(
        knobs=knobs,
        conditions={
            name: _parse_when(f"space.{name}.when", when, knobs)
            for name, when in written_whens.items()
        },
        ties={name: ties[name] for name in order},
        forbidden=tuple(
            _parse_rule(f"forbid[{i}]", rule, knobs, written_whens, values)
            for i, rule in enumerate(rules)
        ),
        fixed=fixed,
    )
    _ = space.order  # refuses circular conditions
    return space


def describe(trial: TrialSpec) -> dict[str, Any]:
    """Hyperparameters of a trial by readable names, for tables and tracking."""
    names = {"base.model": "base", "base.revision": "revision"}
    flat: dict[str, Any] = {}
    sections = {
        "base": deciding_settings("base", dataclasses.asdict(trial.base)),
        "lora": dataclasses.asdict(trial.lora),
        "optim": trial.optim.deciding(),
    }
    for section, settings in sections.items():
        for field_, value in settings.items():
            name = f"{section}.{field_}"
            short = field_ if section == "base" else name
            flat[names.get(name, short)] = "+".join(value) if isinstance(value, tuple) else value
    if trial.lora.alpha.is_integer():
        flat["lora.alpha"] = int(trial.lora.alpha)  # so that a filter can be written as alpha = 16
    limits = {
        "data.max_tokens": trial.data.max_tokens,
        "data.train_max_tokens": trial.data.train_max_tokens,
    }
    return flat | limits | {"seed": trial.seed}


def searched_names(space: SearchSpace) -> list[str]:
    """Names from `describe` with values that can differ between trials of the space."""
    names = {"base.model": "base", "base.revision": "revision", ALPHA_PER_RANK: "lora.alpha"}
    varied = (names.get(name, name.removeprefix("base.")) for name in (*space.knobs, *space.ties))
    return list(dict.fromkeys(varied))


def _parse_when(where: str, written: object, knobs: Mapping[str, Distribution]) -> Condition:
    if isinstance(written, Mapping):
        for name, value in written.items():
            require(
                name in knobs or name not in SETTINGS,
                f"{where}.{name}",
                value,
                f"knobs that are searched ({', '.join(knobs)})",
                f"Search {name}, or take it out of the condition.",
            )
    condition = parse_condition(where, written, {name: KNOBS[name] for name in knobs})
    require_taken(where, condition, knobs, {})
    return condition


def _parse_rule(
    where: str,
    written: object,
    knobs: Mapping[str, Distribution],
    conditional: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> Condition:
    condition = parse_condition(where, written, SETTINGS | {name: KNOBS[name] for name in knobs})
    otherwise = {name: fixed[name] for name in conditional if name in fixed}
    require_taken(where, condition, knobs, otherwise)
    return condition
