"""What one trial is: a base, an adapter on it, an optimizer, data and how it is measured.

Plain frozen values without torch, so that a driver or a proxy can hold them. They check themselves
when built: a `TrialSpec` that exists is one that can be tried.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from trainables.errors import SpecError

Quantization = Literal["nf4", "fp4", "int8", "none"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
Schedule = Literal["constant", "linear", "cosine"]
LoraInit = Literal["kaiming", "gaussian", "orthogonal", "eva"]
DataFormat = Literal["auto", "messages", "prompt-completion", "text"]

TARGET_GROUPS = ("attention", "mlp", "all-linear")
"""Names that stand for sets of linear layers; `trainables.lora` resolves them on a real model."""

Rows = tuple[dict[str, Any], ...]
"""Examples held in memory; a sweep writes them to its storage folder before a trial sees them."""

_SHARED = "it changes the base's weights, which the trials of a host share"
_REFUSED_INITS = {
    **dict.fromkeys(("pissa", "pissa_niter", "olora", "corda", "loftq", "lora_ga"), _SHARED),
    "mica": "it needs a base of full-precision weights",
}
"""PEFT's other values of `init_lora_weights`, with why not."""

_RENDERED = frozenset(
    ("messages", "conversation", "tools", "documents", "add_generation_prompt", "chat_template")
    + ("tokenize", "return_dict", "continue_final_message")
)
"""Arguments that a rendering gives itself."""

_STRICT: dict[str, Any] = {"extra": "forbid"}


def remedy_for_init(init: str) -> str:
    """What to do about an impossible `lora.init`, with the reason for one that PEFT has."""
    why = _REFUSED_INITS.get(re.sub(r"_niter_\d+$", "_niter", init))
    return f"{init}: {why}. Choose one of these." if why else "Choose one of these."


def _require(claim: bool, where: str, value: object, allowed: str, remedy: str) -> None:
    if not claim:
        raise SpecError(f"{where}: got {value!r}; allowed: {allowed}. {remedy}")


def _settle_floats(spec: object) -> None:
    """Turn whole numbers in float fields into floats: 16 and 16.0 must be the same trial."""
    for one in dataclasses.fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, one.name)
        if one.type == "float" and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(spec, one.name, float(value))


def _require_choice(
    value: object, literal: object, where: str, remedy: str = "Choose one of these."
) -> None:
    allowed = get_args(literal)
    _require(value in allowed, where, value, ", ".join(map(str, allowed)), remedy)


def _require_finite(value: float, where: str, *, above: float | None = None) -> None:
    claim = math.isfinite(value) and (value >= 0 if above is None else value > above)
    _require(
        claim,
        where,
        value,
        "a finite number > 0" if above is not None else "a finite number >= 0",
        "Set a number in that range.",
    )


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """A frozen base model and the form its linear weights are stored in.

    Attributes:
        model: A hub id (`owner/name`), a local folder, a `.gguf` file, or `package:NAME/FILE` for
            a file that ships inside an installed Python package.
        revision: Commit, tag or branch of a hub model; pinned to the commit when loaded.
        quantization: Stored form of the linear layers (arXiv:2305.14314, section 3).
        double_quant: Quantize the 4-bit constants too (saves about 0.37 bit per weight).
        compute_dtype: Type of activations and unquantized weights; `auto` is bfloat16 where the
            hardware multiplies it, else float32. float16 is for GPUs that multiply nothing else
            fast; activations above 65504 end a trial as diverged.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    model: str
    revision: str | None = None
    quantization: Quantization = "nf4"
    double_quant: bool = True
    compute_dtype: ComputeDtype = "auto"

    def __post_init__(self) -> None:
        _require(
            bool(self.model.strip()),
            "base.model",
            self.model,
            "a hub id, a folder, a .gguf file or package:NAME/FILE",
            "Name a base model.",
        )
        _require_choice(self.quantization, Quantization, "base.quantization")
        _require_choice(self.compute_dtype, ComputeDtype, "base.compute_dtype")


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """A low-rank adapter (arXiv:2106.09685): `W x + scaling * B A x`.

    Attributes:
        rank: Inner dimension of the update.
        alpha: Numerator of the scaling.
        targets: One of `TARGET_GROUPS`, or names of linear layers such as `("q_proj", "v_proj")`.
        dropout: Probability of zeroing an input of the adapter branch, in [0, 1).
        rslora: Scale by `alpha / sqrt(rank)` (arXiv:2312.03732) instead of `alpha / rank`.
        init: How `A` starts: PEFT's kaiming uniform or normal numbers, or where the layer's inputs
            vary most (`eva`, arXiv:2410.07170), with `B` at zero; or `orthogonal`, where neither
            is zero but `B A` is. The adapted model starts as the base.
        dora: Learn the norms of the rows of `W + scaling * B A`, too (arXiv:2402.09353).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.0
    rslora: bool = False
    init: LoraInit = "kaiming"
    dora: bool = False

    def __post_init__(self) -> None:
        _settle_floats(self)
        _require(1 <= self.rank <= 1024, "lora.rank", self.rank, "1 to 1024", "Use a rank there.")
        _require_finite(self.alpha, "lora.alpha", above=0.0)
        _require(
            0.0 <= self.dropout < 1.0,
            "lora.dropout",
            self.dropout,
            "0 <= p < 1",
            "Use 0 to switch dropout off.",
        )
        _require_choice(self.init, LoraInit, "lora.init", remedy_for_init(str(self.init)))
        _require(
            self.init != "orthogonal" or self.rank % 2 == 0,
            "lora.rank",
            self.rank,
            "an even rank with lora.init orthogonal",
            "Half of it goes to each of A and B: use an even rank or another init.",
        )
        if isinstance(self.targets, str):
            _require(
                self.targets in TARGET_GROUPS,
                "lora.targets",
                self.targets,
                f"{', '.join(TARGET_GROUPS)} or a list of layer names",
                "Write a single layer as a list: [q_proj].",
            )
        else:
            _require(
                len(self.targets) > 0 and all(self.targets),
                "lora.targets",
                self.targets,
                "at least one layer name",
                "Name layers such as q_proj.",
            )

    @property
    def scaling(self) -> float:
        """Factor on the adapter branch."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """AdamW, its schedule and the horizon of a trial.

    Attributes:
        steps: Optimizer steps to the horizon. The schedule spans all of them, so a trial that is
            stopped early is a prefix of the trial it would have been.
        batch_size: Rows per optimizer step.
        micro_batch_size: Rows per forward pass; `None` takes the whole batch at once. The loss is
            the mean over the answer tokens of the whole batch either way.
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        max_grad_norm: Global norm the adapter's gradient is clipped to; 0 switches it off.
        loraplus_ratio: Learning rate of `B` (and of DoRA's magnitudes) over that of `A`, at least
            1 (LoRA+, arXiv:2402.12354); `learning_rate` is that of `A`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    steps: int
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    batch_size: int = 8
    micro_batch_size: int | None = None
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    loraplus_ratio: float = 1.0

    def __post_init__(self) -> None:
        _settle_floats(self)
        _require(self.steps >= 1, "optim.steps", self.steps, ">= 1", "Train at least one step.")
        _require_finite(self.learning_rate, "optim.learning_rate", above=0.0)
        _require_choice(self.schedule, Schedule, "optim.schedule")
        _require(
            0 <= self.warmup_steps <= self.steps,
            "optim.warmup_steps",
            self.warmup_steps,
            f"0 to optim.steps ({self.steps})",
            "Shorten the warm-up.",
        )
        _require(
            self.batch_size >= 1,
            "optim.batch_size",
            self.batch_size,
            ">= 1",
            "Use at least one row per step.",
        )
        micro = self.micro_batch_size
        _require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "optim.micro_batch_size",
            micro,
            f"a divisor of optim.batch_size ({self.batch_size})",
            "Use a divisor, or leave it out.",
        )
        _require_finite(self.weight_decay, "optim.weight_decay")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"optim.{name}", value, "0 <= beta < 1", "Lower it.")
        _require_finite(self.eps, "optim.eps", above=0.0)
        _require_finite(self.max_grad_norm, "optim.max_grad_norm")
        _require(
            math.isfinite(self.loraplus_ratio) and self.loraplus_ratio >= 1,
            "optim.loraplus_ratio",
            self.loraplus_ratio,
            "a finite number >= 1",
            "Use 1 to switch it off.",
        )


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where examples come from and how they are split and cut.

    Attributes:
        train: A `.jsonl`, `.json`, `.parquet` or `.csv` file, a hub dataset id, or the rows
            themselves (any iterable of mappings, such as a `datasets.Dataset`).
        validation: Rows that trials are compared on; split off `train` when not given.
        test: Rows that only finalists see; split off `train` when not given.
        format: `messages` (chat template), `prompt-completion`, or `text`; `auto` reads it off the
            columns.
        validation_fraction: Part of `train` used when `validation` is not given.
        test_fraction: Part of `train` used when `test` is not given; 0 for no test split.
        group_by: Column whose equal values stay in one split.
        split_seed: Seed of the split.
        max_tokens: Rows longer than this are cut at the end.
        train_max_tokens: A shorter limit for the rows trained on; `None` is `max_tokens`. Trials
            that differ in it are measured on the same rows.
        revision: Commit or tag of a hub dataset.
        template: Name of the chat template to use, where the base's tokenizer has several.
        template_args: Arguments of the chat template, such as `enable_thinking: false`. For a
            template that writes today's date, `strftime_now: 2026-01-31` is the day it writes.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    train: str | Rows
    validation: str | Rows | None = None
    test: str | Rows | None = None
    format: DataFormat = "auto"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    group_by: str | None = None
    split_seed: int = 0
    max_tokens: int = 512
    revision: str | None = None
    train_max_tokens: int | None = None
    template: str | None = None
    template_args: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        self._settle_template_args()
        for split in ("train", "validation", "test"):
            source = getattr(self, split)
            if source is not None and not isinstance(source, str):
                source = tuple(dict(row) for row in source)
                object.__setattr__(self, split, source)
            _require(
                source is None or len(source) > 0,
                f"data.{split}",
                source,
                "a file, a hub dataset id or at least one row",
                "Name the data.",
            )
        _require_choice(self.format, DataFormat, "data.format")
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"data.{name}", value, "0 <= fraction < 1", "Lower it.")
        total = self.validation_fraction + self.test_fraction
        _require(
            total < 1.0,
            "data.validation_fraction",
            total,
            "validation_fraction + test_fraction < 1",
            "Leave rows to train on.",
        )
        _require(
            self.validation is not None or self.validation_fraction > 0,
            "data.validation_fraction",
            self.validation_fraction,
            "> 0 without data.validation",
            "Trials are compared on validation rows: give some.",
        )
        _require(
            self.max_tokens >= 2,
            "data.max_tokens",
            self.max_tokens,
            ">= 2",
            "A row needs a prompt and an answer.",
        )
        _require(
            self.train_max_tokens is None or 2 <= self.train_max_tokens <= self.max_tokens,
            "data.train_max_tokens",
            self.train_max_tokens,
            f"2 to data.max_tokens ({self.max_tokens})",
            "Lower it, or raise data.max_tokens.",
        )

    def _settle_template_args(self) -> None:
        # YAML reads a day as a date, which neither JSON nor a template takes.
        args = {
            name: value.isoformat() if isinstance(value, datetime.date) else value
            for name, value in self.template_args.items()
        }
        object.__setattr__(self, "template_args", args)
        taken = sorted(_RENDERED.intersection(args))
        _require(
            not taken,
            "data.template_args",
            ", ".join(taken),
            "arguments that the rows do not give",
            "Take it out; tools are a column of the rows.",
        )
        try:
            json.dumps(args)
        except (TypeError, ValueError) as error:
            raise SpecError(
                f"data.template_args: got {args!r} ({error}); allowed: text, numbers, true and "
                "false, lists and mappings. Write the values as such."
            ) from error


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """How often and on how much a trial is measured.

    Attributes:
        every: Optimizer steps between two evaluations; also the unit in which a trial advances.
        batch_size: Rows per forward pass.
        max_rows: Validation rows used during the search, from the first; `None` is all.
            Finals always use every test row.
        keep_every: Steps between two adapters that are kept besides the last, a multiple of
            `every`; 0 keeps the last alone.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    every: int = 20
    batch_size: int = 32
    max_rows: int | None = None
    keep_every: int = 0

    def __post_init__(self) -> None:
        _require(self.every >= 1, "eval.every", self.every, ">= 1", "Evaluate now and then.")
        _require(self.batch_size >= 1, "eval.batch_size", self.batch_size, ">= 1", "Raise it.")
        _require(
            self.max_rows is None or self.max_rows >= 1,
            "eval.max_rows",
            self.max_rows,
            ">= 1",
            "Leave it out to use every row.",
        )
        _require(
            self.keep_every >= 0 and self.keep_every % self.every == 0,
            "eval.keep_every",
            self.keep_every,
            f"0, or a multiple of eval.every ({self.every})",
            "An adapter is kept where it is measured.",
        )


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """Everything that decides what a trained adapter will be."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    base: BaseSpec
    lora: LoraSpec = field(default_factory=LoraSpec)
    optim: OptimSpec
    data: DataSpec
    eval: EvalSpec = field(default_factory=EvalSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            not (self.lora.dora and self.base.quantization == "int8"),
            "lora.dora",
            self.lora.dora,
            "false with base.quantization int8",
            "PEFT 0.21 cannot load DoRA on an 8-bit base: use nf4, fp4 or none.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON; tuples become lists."""
        values = dataclasses.asdict(self)
        if not isinstance(self.lora.targets, str):
            values["lora"]["targets"] = list(self.lora.targets)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrialSpec:
        """Rebuild what `to_dict` gave.

        Raises:
            SpecError: A value is impossible or a key unknown.
        """
        lora = dict(values["lora"])
        if not isinstance(lora["targets"], str):
            lora["targets"] = tuple(lora["targets"])
        try:
            return cls(
                base=BaseSpec(**values["base"]),
                lora=LoraSpec(**lora),
                optim=OptimSpec(**values["optim"]),
                data=DataSpec(**values["data"]),
                eval=EvalSpec(**values["eval"]),
                seed=values["seed"],
            )
        except TypeError as error:
            raise SpecError(f"trial spec: {error}; rebuild it with TrialSpec.to_dict()") from error
