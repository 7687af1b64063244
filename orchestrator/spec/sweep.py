"""The spec of a sweep: fixed settings, a search space, a budget, finals and registration.

`SweepSpec` is the schema of a sweep file. A spec is checked when it is built, from YAML or in
Python: every `SweepSpec` can be run, and a mistake is a `SweepSpecError` that names the field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import SweepSpecError
from orchestrator.metrics import TRIAL_METRICS
from orchestrator.spec.complaint import READ_AS_BOOL, complaint, require, translate
from orchestrator.spec.distributions import Choice
from orchestrator.spec.finals_sections import (
    FinalsSpec,
    RegisterSpec,
    require_gate,
    require_trained_form,
)
from orchestrator.spec.hosts_section import HostsSpec
from orchestrator.spec.inputs import (
    SPLITS,
    deciding_values,
    locate_base,
    locate_choices,
    locate_data,
    locate_function,
    locate_rules,
    save_function,
    save_rows,
    with_located_sources,
    without_files,
)
from orchestrator.spec.population import check_pbt
from orchestrator.spec.sections import (
    BudgetSpec,
    ExitSpec,
    ObjectiveSpec,
    ScheduleSpec,
    SearchSpec,
    require_slug,
)
from orchestrator.spec.settings import (
    MAX_SEED,
    assemble,
    changed_sections,
    form_of_files,
    settled_base,
    without_rows,
)
from orchestrator.spec.soundness import require_searchable, require_sound
from orchestrator.spec.space import SearchSpace, parse_space, split_constants
from orchestrator.sweepfile.changes import apply_changes, parse_changes, show_change
from orchestrator.sweepfile.describing import section_of
from orchestrator.sweepfile.reading import YamlText
from trainables.claims import LARGEST, huge_number
from trainables.spec import BaseSpec, DataSpec, EvalSpec, LoraSpec, OptimSpec, TrialSpec

_STRICT: dict[str, Any] = {"extra": "forbid"}

RESUMABLE_CHANGES = ("budget", "finals", "hosts", "register")
"""Sections outside of `digest`: they limit and place a sweep, but do not change its trials."""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """All settings of a sweep.

    >>> spec = SweepSpec(
    ...     name="greetings",
    ...     base=BaseSpec(model="HuggingFaceTB/SmolLM2-135M-Instruct"),
    ...     data=DataSpec(train=[{"prompt": "hello ->", "completion": " bonjour"}]),
    ...     optim=OptimSpec(steps=40),
    ...     eval=EvalSpec(every=10),
    ...     space={"lora.rank": {"choice": [4, 8]}},
    ...     budget=BudgetSpec(trials=8),
    ... )
    >>> spec.horizon, spec.schedule.grace_steps
    (40, 10)

    Attributes:
        name: Name of the sweep's folder and, by default, of its registered model.
        base: Base model of every trial.
        data: Rows of every trial; local paths become absolute.
        lora: Adapter settings outside of the space.
        optim: Optimizer settings outside of the space; `steps` is the horizon.
        eval: Evaluation of trials.
        space: Knobs with distributions or expressions as written; `search_space` is the parsed
            form. Constants become fixed settings.
        forbid: Combinations of values that no trial may have: each is a mapping of settings to a
            value or a list of values.
        objective: Objectives and constraints for comparing trials.
        search: Choice of configurations.
        schedule: Early stopping in comparison with other trials.
        exits: Conditions that end a trial without comparison.
        budget: Limits of the sweep.
        finals: Further training and evaluation of the best configurations.
        hosts: Hosts on which trials are trained.
        register: Registration of the best adapters; `None` registers none.
        seed: Decides every random choice: suggestions, initial adapters, the order of rows.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str
    base: BaseSpec
    data: DataSpec
    lora: LoraSpec = field(default_factory=LoraSpec)
    optim: OptimSpec
    eval: EvalSpec = field(default_factory=EvalSpec)
    space: Mapping[str, Any] = field(default_factory=dict)
    forbid: tuple[Mapping[str, Any], ...] = ()
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    exits: ExitSpec = field(default_factory=ExitSpec)
    budget: BudgetSpec
    finals: FinalsSpec = field(default_factory=FinalsSpec)
    hosts: HostsSpec = field(default_factory=HostsSpec)
    register: RegisterSpec | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_small_numbers()
        require_slug("name", self.name)
        self._settle_written()
        require(
            0 <= self.seed <= MAX_SEED,
            "seed",
            self.seed,
            f"0 to {MAX_SEED}",
            "Use a seed in that range.",
        )
        self._check_steps()
        self._fill("base", locate_base(self.base, Path.cwd()))
        self._fill("data", locate_data(self.data, Path.cwd()))
        self._locate_functions()
        self._check_own_metric()
        quarter = max(self.eval.every, self.horizon // 4 // self.eval.every * self.eval.every)
        grace_steps = self.schedule.grace_steps or quarter
        self._fill("schedule", dataclasses.replace(self.schedule, grace_steps=grace_steps))
        self._check_register()
        self._settle_stored_form()
        self._check_space()
        require_searchable(self.search_space, self.space, self.search, self.objective)
        if self.schedule.algorithm == "pbt":
            check_pbt(
                self.search_space,
                self.schedule,
                trials=self.budget.trials,
                every=self.eval.every,
                horizon=self.horizon,
            )

    @classmethod
    def from_yaml(cls, path: str | Path, changes: Sequence[str] = ()) -> SweepSpec:
        """Parse a sweep file; relative paths in the file start at its folder.

        Args:
            path: The file.
            changes: Changed fields, such as `lora.rank=16`, with values in YAML; relative paths
                in them start at the working directory.

        Raises:
            SweepSpecError: The file, a change or a value cannot work. The message shows the line
                of the field.
        """
        source, parsed = YamlText.of_file(Path(path)), parse_changes(changes)
        values = source.mapping()
        try:
            here = with_located_sources(apply_changes({}, parsed), Path.cwd())
            values = apply_changes(values, [one.taken_from(here) for one in parsed])
            return parse_sweep(values, Path(path).parent)
        except SweepSpecError as error:
            raise show_change(error, parsed) or source.show_field(error) from error

    @property
    def horizon(self) -> int:
        """Steps of a trial that is never stopped."""
        return self.optim.steps

    @property
    def bases(self) -> tuple[BaseSpec, ...]:
        """Every base that a trial may have, in the order of the choices."""
        knob = self.search_space.knobs.get("base.model")
        models = knob.values if isinstance(knob, Choice) else (self.base.model,)
        return tuple(dataclasses.replace(self.base, model=model) for model in models)

    @cached_property
    def search_space(self) -> SearchSpace:
        """`space`, parsed and checked against the fixed settings."""
        return parse_space(self.space, without_rows(self), self.forbid)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all settings that decide trials and their comparison.

        A sweep can be resumed only with the same digest. `RESUMABLE_CHANGES` are left out, and so
        are the settings that decide memory alone. Data files and functions count by
        content: moving a file keeps the digest, changing it does not.
        """
        return self.digest_of(self.to_dict())

    def digest_of(self, values: Mapping[str, Any]) -> str:
        """`digest`, of this sweep's values without fields that another version does not know."""
        kept = {name: one for name, one in values.items() if name not in RESUMABLE_CHANGES}
        kept = deciding_values(kept)
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values for JSON and for `parse_sweep`.

        Raises:
            SweepSpecError: Rows are still in memory; see `with_saved_rows`.
        """
        for split in SPLITS:
            rows = getattr(self.data, split)
            require(
                rows is None or isinstance(rows, str),
                f"data.{split}",
                rows,
                "a file or a hub dataset id here",
                "Write the rows to files first: SweepSpec.with_saved_rows(folder).",
            )
        values = dataclasses.asdict(self)
        # A round trip through JSON turns tuples into lists and checks that all values are JSON.
        return cast("dict[str, Any]", json.loads(json.dumps(values, allow_nan=False)))

    def with_saved_rows(self, folder: Path) -> SweepSpec:
        """The same sweep with rows in memory, and functions, replaced by files in the folder.

        Raises:
            SweepStorageError: The folder cannot be written.
        """
        return dataclasses.replace(
            self,
            data=save_rows(self.data, folder),
            eval=dataclasses.replace(self.eval, metric=save_function(self.eval.metric, folder)),
            exits=dataclasses.replace(self.exits, stop=save_function(self.exits.stop, folder)),
        )

    def _fill(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _require_small_numbers(self) -> None:
        sections = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        name, value = huge_number({**sections, "data": without_rows(self).data}) or ("", None)
        allowed = f"whole numbers from -{LARGEST} to {LARGEST}"
        require(value is None, name, value, allowed, "Use a smaller number.")

    def _check_steps(self) -> None:
        every = self.eval.every
        _require_multiple("optim.steps", self.optim.steps, every)
        grace = self.schedule.grace_steps
        if grace:
            require(
                0 < grace <= self.horizon,
                "schedule.grace_steps",
                grace,
                f"1 to optim.steps ({self.horizon})",
                "Use a smaller first rung.",
            )
            _require_multiple("schedule.grace_steps", grace, every)

    def _locate_functions(self) -> None:
        here = Path.cwd()
        for section, name in (("eval", "metric"), ("exits", "stop")):
            old = getattr(self, section)
            changed = {name: locate_function(getattr(old, name), here)}
            self._fill(section, dataclasses.replace(old, **changed))
        metrics = tuple(locate_function(name, here) for name in self.finals.metrics)
        self._fill("finals", dataclasses.replace(self.finals, metrics=metrics))

    def _check_own_metric(self) -> None:
        """Refuse an objective that no report has, and a function named as another metric."""
        function = (self.eval.metric or "").rpartition(":")[2]
        require(
            f"eval_{function}" not in TRIAL_METRICS,
            "eval.metric",
            self.eval.metric,
            f"a function with a name of its own: eval_{function} is another metric",
            "Rename the function.",
        )
        if self.objective.own_function not in (None, function):
            raise self.objective.unknown_metric(function)

    def _check_register(self) -> None:
        if self.register is None:
            return
        self._fill(
            "register", dataclasses.replace(self.register, name=self.register.name or self.name)
        )
        require_gate(self.finals, self.register)
        top = self.register.top
        require(
            top <= self.budget.trials,
            "register.top",
            top,
            f"up to budget.trials ({self.budget.trials})",
            "Register fewer, or allow more trials.",
        )
        require(
            top <= self.finals.top,
            "register.top",
            top,
            f"up to finals.top ({self.finals.top})",
            f"Register fewer, or set finals.top to {top}: only finalists are registered.",
        )

    def _settle_stored_form(self) -> None:
        """Take the stored form from a base's quantized files, or refuse the base."""
        knobs = self.search_space.knobs
        if "base.model" not in knobs:
            form_of_files(self.base)  # an error here names the base, not a knob
            if "base.quantization" not in knobs:
                self._fill("base", settled_base(self.base))
        for base in self.bases:
            if form_of_files(base) is not None:
                require_trained_form(self.finals, self.register, base.model)

    def _settle_written(self) -> None:
        """Turn dotted names into nested values, and constants of the space into settings."""
        space = {name: _plain(f"space.{name}", value) for name, value in self.space.items()}
        forbid = [_plain(f"forbid[{i}]", rule) for i, rule in enumerate(self.forbid)]
        start = [_plain(f"search.start[{i}]", point) for i, point in enumerate(self.search.start)]
        constants, varied = split_constants(locate_choices(space, Path.cwd()))
        for name, value in constants.items():
            try:
                changed = changed_sections(self, {name: value})
            except SweepSpecError as error:
                text = str(error)
                where = "space." if text.startswith(f"{name}:") else f"space.{name}: "
                raise SweepSpecError(f"{where}{text}") from error
            for section, settings in changed.items():
                self._fill(section, settings)
        self._fill("space", varied)
        self._fill("forbid", tuple(locate_rules(forbid, Path.cwd(), "forbid")))
        located = tuple(locate_rules(start, Path.cwd(), "search.start"))
        self._fill("search", dataclasses.replace(self.search, start=located))

    def _check_space(self) -> None:
        require(
            len(self.search_space.knobs) > 0 or self.budget.trials == 1,
            "space",
            dict(self.space),
            "at least one knob to search for more than one trial",
            "Add a knob such as lora.rank: {choice: [4, 8]}, or set budget.trials to 1.",
        )
        require_sound(self.search_space)


def parse_sweep(mapping: Mapping[str, Any], base_dir: Path) -> SweepSpec:
    """Build a sweep from plain values; relative paths start at `base_dir`.

    Raises:
        SweepSpecError: A key is unknown or a value is impossible; the message has the first
            mistake.
    """
    _refuse_misplaced_bools(mapping, SweepSpec, "")
    try:
        return _SWEEP.validate_python(with_located_sources(mapping, base_dir.resolve()))
    except ValidationError as error:
        raise translate(error, SweepSpec) from error


def recorded_sweep(mapping: Mapping[str, Any]) -> SweepSpec:
    """A sweep from its event log, for reading only: data and bases may not exist any more.

    Raises:
        SweepSpecError: Another version of lorchestra wrote the record.
    """
    try:
        sections = without_files(mapping)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SweepSpecError(
            f"events.jsonl: the recorded sweep cannot be read ({type(error).__name__}: {error}); "
            "allowed: what lorchestra wrote. Restore the file from a copy, or read it with the "
            "version that wrote it."
        ) from error
    return parse_sweep({**mapping, **sections}, Path.cwd())


def build_trial(spec: SweepSpec, knobs: Mapping[str, Any]) -> TrialSpec:
    """The trial with a sweep's fixed settings and the given knobs.

    Tied settings are computed. Missing or inactive knobs have their fixed settings.

    Raises:
        SweepSpecError: The settings are not valid together.
    """
    return assemble(spec, spec.search_space.changes(knobs))


_SWEEP = TypeAdapter(SweepSpec)


def _refuse_misplaced_bools(values: Mapping[str, Any], owner: type, prefix: str) -> None:
    """Refuse true and false for numbers and text: YAML reads `no` as false, pydantic takes 0."""
    hints = get_type_hints(owner)
    for name, value in values.items():
        hint = hints.get(name)
        options = get_args(hint) or (hint,)
        section = section_of(hint)
        if isinstance(value, Mapping) and section is not None:
            _refuse_misplaced_bools(value, section, f"{prefix}{name}.")
        elif isinstance(value, bool) and hint is not None and bool not in options:
            raise complaint(
                f"{prefix}{name}",
                value,
                "a value other than true and false",
                f"{READ_AS_BOOL}: give another value, or quote the word.",
            )


def _plain(where: str, written: Any) -> Any:
    """The value after a round trip through JSON: a spec then equals its recorded copy."""
    try:
        return json.loads(json.dumps(written, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise complaint(
            where, written, "finite numbers, text and lists", "Write the values out."
        ) from error


def _require_multiple(where: str, steps: int, every: int) -> None:
    below = steps // every * every
    near = f"{below} or {below + every}" if below else str(every)
    require(
        steps % every == 0, where, steps, f"a multiple of eval.every ({every})", f"Use {near}."
    )


__all__ = [
    "BudgetSpec",
    "ExitSpec",
    "FinalsSpec",
    "HostsSpec",
    "ObjectiveSpec",
    "RegisterSpec",
    "ScheduleSpec",
    "SearchSpec",
    "SweepSpec",
    "build_trial",
    "parse_sweep",
    "recorded_sweep",
]
