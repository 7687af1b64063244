"""Specification of one trial: base, adapter, optimizer, data and evaluation.

The values are plain, frozen and free of torch, so that a driver or a proxy can hold them. Each
value checks itself when built, so an existing `TrialSpec` is valid.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from trainables.claims import (
    begin,
    require,
    require_choice,
    require_finite,
    require_path,
    require_small_numbers,
    require_types,
    show,
)
from trainables.data_spec import DataSpec
from trainables.errors import SpecError
from trainables.functions import FORM, names_function

Quantization = Literal["nf4", "fp4", "int8", "none"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
Optimizer = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "lion",
    "lion_8bit",
    "paged_lion_8bit",
]
Checkpointing = Literal["auto"] | bool
Schedule = Literal["constant", "linear", "cosine"]
LoraInit = Literal["kaiming", "gaussian", "orthogonal", "eva"]

TARGET_GROUPS = ("attention", "mlp", "all-linear")
"""Names of groups of linear layers; `packing.lora` resolves each group on a real model."""

_SHARED = "it changes the base's weights, which the trials of a host share"
_REFUSED_INITS = {
    **dict.fromkeys(("pissa", "pissa_niter", "olora", "corda", "loftq", "lora_ga"), _SHARED),
    "mica": "it needs a base of full-precision weights",
}
"""Refused values of PEFT's `init_lora_weights`, each with the reason."""

MEMORY_SETTINGS = ("gradient_checkpointing",)
"""Settings of `optim` that decide a trial's memory and time, not its result: no digest covers
them, and they may change when a sweep is continued."""

_MAX_WORD = 60
_STRICT: dict[str, Any] = {"extra": "forbid"}


METRIC_COST = "metric_s"
"""Reported seconds that an evaluation took for `eval.metric`."""


def remedy_for_init(init: str) -> str:
    """Remedy for an invalid `lora.init`, with the reason where PEFT itself has the value."""
    # A value of another type comes from a file.
    why = _REFUSED_INITS.get(
        re.sub(r"_niter_\d+$", "_niter", init if isinstance(init, str) else "")
    )
    return f"{init}: {why}. Choose one of these." if why else "Choose one of these."


def _settle_floats(spec: object) -> None:
    """Convert whole numbers in float fields to floats, so that 16 and 16.0 are the same trial."""
    for one in dataclasses.fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, one.name)
        if one.type == "float" and type(value) is int:
            object.__setattr__(spec, one.name, float(value))


@dataclass(frozen=True, kw_only=True)
class BaseSpec:
    """A frozen base model and the stored form of its linear weights.

    Attributes:
        model: A hub id (`owner/name`), a local folder, a `.gguf` file, or `package:NAME/FILE` for
            a file that ships inside an installed Python package.
        revision: Commit, tag or branch of a hub model; pinned to the commit when loaded.
        quantization: Stored form of the linear layers (arXiv:2305.14314, section 3).
        double_quant: Quantize the 4-bit constants too (saves about 0.37 bit per weight).
        compute_dtype: Type of activations and unquantized weights; `auto` is bfloat16 where the
            hardware multiplies bfloat16, else float32. float16 is for GPUs without another fast
            type; activations above 65504 end a trial as diverged.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    model: str
    revision: str | None = None
    quantization: Quantization = "nf4"
    double_quant: bool = True
    compute_dtype: ComputeDtype = "auto"

    def __post_init__(self) -> None:
        require(
            bool(self.model.strip()),
            "base.model",
            self.model,
            "a hub id, a folder, a .gguf file or package:NAME/FILE",
            "Name a base model.",
        )
        require_path(self.model, "base.model")
        require_choice(self.quantization, Quantization, "base.quantization")
        require_choice(self.compute_dtype, ComputeDtype, "base.compute_dtype")


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """A low-rank adapter (arXiv:2106.09685): `W x + scaling * B A x`.

    Attributes:
        rank: Inner dimension of the update.
        alpha: Numerator of the scaling.
        targets: A group of linear layers (`attention`, `mlp` or `all-linear`), or names of layers
            such as `[q_proj, v_proj]`.
        dropout: Probability of zeroing an input of the adapter branch, in [0, 1).
        rslora: Scale by `alpha / sqrt(rank)` (arXiv:2312.03732) instead of `alpha / rank`.
        init: Start of `A`: uniform (PEFT's kaiming) or normal random numbers, or the directions of
            most variance in the layer's inputs (`eva`, arXiv:2410.07170), each with `B` at zero;
            or `orthogonal`, where `A` and `B` are nonzero and `B A` is zero. The adapted model
            starts equal to the base.
        dora: Also learn the norms of the rows of `W + scaling * B A` (arXiv:2402.09353).
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
        require_small_numbers(self, "lora")
        _settle_floats(self)
        require(1 <= self.rank <= 1024, "lora.rank", self.rank, "1 to 1024", "Use a rank there.")
        require_finite(self.alpha, "lora.alpha", above=0.0)
        require(
            0.0 <= self.dropout < 1.0,
            "lora.dropout",
            self.dropout,
            "0 <= p < 1",
            "Use 0 to switch dropout off.",
        )
        require_choice(self.init, LoraInit, "lora.init", remedy_for_init(str(self.init)))
        require(
            self.init != "orthogonal" or self.rank % 2 == 0,
            "lora.rank",
            self.rank,
            "an even rank with lora.init orthogonal",
            "Half of it goes to each of A and B: use an even rank or another init.",
        )
        if isinstance(self.targets, str):
            self._require_group(self.targets)
        else:
            require(
                len(self.targets) > 0 and all(self.targets),
                "lora.targets",
                list(self.targets),
                "at least one layer name",
                "Name layers such as q_proj.",
            )

    @staticmethod
    def _require_group(name: str) -> None:
        if name not in TARGET_GROUPS:
            near = difflib.get_close_matches(name[:_MAX_WORD], TARGET_GROUPS, n=1)
            raise SpecError(
                f"{begin('lora.targets', *near)} {show(name)}; allowed: "
                f"{', '.join(TARGET_GROUPS)} or a list of layer names. Write a single layer as a "
                "list: [q_proj]."
            )

    @property
    def scaling(self) -> float:
        """Factor on the adapter branch."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def deciding_optim(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of an `OptimSpec` of any version, without `MEMORY_SETTINGS`."""
    return {name: value for name, value in values.items() if name not in MEMORY_SETTINGS}


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimizer, its schedule and the horizon of a trial.

    Attributes:
        steps: Optimizer steps to the horizon. The schedule spans the whole horizon, so an early
            stopped trial is a prefix of the full trial.
        optimizer: AdamW (arXiv:1711.05101) of torch, or an optimizer of bitsandbytes: AdamW or
            Lion (arXiv:2302.06675) with moments of 32 bits or, for matrices of at least 4,096
            weights, of 8 bits in blocks of 256 (arXiv:2110.02861). The moments of a `paged_` one
            can leave a full GPU for the machine's memory (arXiv:2305.14314, section 3). Lion's
            authors use a third to a tenth of AdamW's learning rate, and a `beta2` of 0.99.
        learning_rate: Largest learning rate of the schedule.
        schedule: Course of the learning rate after the warm-up: `constant`, or down to 0 in a
            `linear` or `cosine` way.
        batch_size: Rows per optimizer step.
        micro_batch_size: Rows per forward pass; `None` passes the whole batch at once. In both
            cases the loss is the mean over the answer tokens of the whole batch.
        max_tokens_per_pass: Most tokens of a forward pass, padding included, but at least one row:
            longer micro-batches are split into several passes, which changes their result only by
            the rounding of sums. `None` splits a micro-batch where memory ran out.
        gradient_checkpointing: Keep only the inputs of decoder layers for the backward pass, and
            compute the layers again there (arXiv:1604.06174): a third more computation for much
            less memory, and the same result bit for bit. `auto` does so where a GPU's memory is
            forecast not to suffice, and where memory ran out.
        warmup_steps: Steps over which the learning rate rises linearly from 0.
        weight_decay: Decoupled weight decay (arXiv:1711.05101).
        beta1: AdamW's decay of the mean of gradients; of Lion, the mean's share in the update.
        beta2: AdamW's decay of the mean of squared gradients; of Lion, the decay of the mean.
        eps: Number added to AdamW's denominator; Lion has none.
        max_grad_norm: Upper bound of the adapter gradient's global norm; 0 disables clipping.
        loraplus_ratio: Learning rate of `B` (and of DoRA's magnitudes) over that of `A`, at least
            1 (LoRA+, arXiv:2402.12354); `learning_rate` is that of `A`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    steps: int
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-4
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    batch_size: int = 8
    micro_batch_size: int | None = None
    max_tokens_per_pass: int | None = None
    gradient_checkpointing: Checkpointing = "auto"
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    loraplus_ratio: float = 1.0

    def __post_init__(self) -> None:
        require_small_numbers(self, "optim")
        _settle_floats(self)
        require(self.steps >= 1, "optim.steps", self.steps, ">= 1", "Train at least one step.")
        require_choice(self.optimizer, Optimizer, "optim.optimizer")
        require_finite(self.learning_rate, "optim.learning_rate", above=0.0)
        require_choice(self.schedule, Schedule, "optim.schedule")
        require(
            0 <= self.warmup_steps <= self.steps,
            "optim.warmup_steps",
            self.warmup_steps,
            f"0 to optim.steps ({self.steps})",
            "Shorten the warm-up.",
        )
        require(
            self.batch_size >= 1,
            "optim.batch_size",
            self.batch_size,
            ">= 1",
            "Use at least one row per step.",
        )
        micro = self.micro_batch_size
        require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "optim.micro_batch_size",
            micro,
            f"a divisor of optim.batch_size ({self.batch_size})",
            "Use a divisor, or leave it out.",
        )
        most = self.max_tokens_per_pass
        require(
            most is None or most >= 1,
            "optim.max_tokens_per_pass",
            most,
            ">= 1",
            "Leave it out for no limit.",
        )
        require(
            self.gradient_checkpointing == "auto" or type(self.gradient_checkpointing) is bool,
            "optim.gradient_checkpointing",
            self.gradient_checkpointing,
            "auto, true or false",
            "Use auto.",
        )
        require_finite(self.weight_decay, "optim.weight_decay")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            require(0.0 <= value < 1.0, f"optim.{name}", value, "0 <= beta < 1", "Lower it.")
        require_finite(self.eps, "optim.eps", above=0.0)
        require_finite(self.max_grad_norm, "optim.max_grad_norm")
        require(
            math.isfinite(self.loraplus_ratio) and self.loraplus_ratio >= 1,
            "optim.loraplus_ratio",
            self.loraplus_ratio,
            "a finite number >= 1",
            "Use 1 to switch it off.",
        )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide a trial's result: all but `MEMORY_SETTINGS`."""
        return deciding_optim(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class EvalSpec:
    """Interval and size of the evaluations during training.

    Attributes:
        every: Optimizer steps between two evaluations; a trial also advances in this unit.
        batch_size: Rows per forward pass.
        max_rows: Most validation rows of the search, the same sample for all trials; `None` for
            all rows. Finals always use every test row.
        keep_every: Steps between two adapters that are kept besides the last, a multiple of
            `every`; 0 keeps only the last adapter.
        metric: A function of yours, `path/to/file.py:function` or `module:function`, computed at
            every evaluation and reported as `eval_<function>`. It gives one finite number for each
            row. Its argument is a mapping of lists, one entry for each row: `loss_sum`,
            `answer_tokens`, `correct_tokens`, `is_whole`; with `max_new_tokens` it has two
            arguments, the lists of greedy completions and of the rows' answers.
        max_new_tokens: Most tokens of a greedy completion for `metric`; 0 for row scores.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    every: int = 20
    batch_size: int = 32
    max_rows: int | None = None
    keep_every: int = 0
    metric: str | None = None
    max_new_tokens: int = 0

    def __post_init__(self) -> None:
        require_small_numbers(self, "eval")
        require(self.every >= 1, "eval.every", self.every, ">= 1", "Evaluate now and then.")
        require(self.batch_size >= 1, "eval.batch_size", self.batch_size, ">= 1", "Raise it.")
        require(
            self.max_rows is None or self.max_rows >= 1,
            "eval.max_rows",
            self.max_rows,
            ">= 1",
            "Leave it out to use every row.",
        )
        require(
            self.keep_every >= 0 and self.keep_every % self.every == 0,
            "eval.keep_every",
            self.keep_every,
            f"0, or a multiple of eval.every ({self.every})",
            "Adapters are kept only at evaluations.",
        )
        require(
            self.metric is None or names_function(self.metric),
            "eval.metric",
            self.metric,
            FORM,
            "Name the function behind a colon.",
        )
        require(
            self.max_new_tokens == 0 or (self.max_new_tokens > 0 and self.metric is not None),
            "eval.max_new_tokens",
            self.max_new_tokens,
            "0, or more with eval.metric",
            "Only a metric of yours reads completions.",
        )


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """Complete specification of a trial: base, LoRA, optimizer, data, evaluation and seed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    base: BaseSpec
    lora: LoraSpec = field(default_factory=LoraSpec)
    optim: OptimSpec
    data: DataSpec
    eval: EvalSpec = field(default_factory=EvalSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        require(
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
        """Rebuild a spec from the values of `to_dict`.

        Raises:
            SpecError: A value is impossible or a key unknown.
        """
        try:
            lora = dict(values["lora"])
            if not isinstance(lora["targets"], str):
                lora["targets"] = tuple(lora["targets"])
            spec = cls(
                base=BaseSpec(**values["base"]),
                lora=LoraSpec(**lora),
                optim=OptimSpec(**values["optim"]),
                data=DataSpec(**values["data"]),
                eval=EvalSpec(**values["eval"]),
                seed=values["seed"],
            )
        except SpecError:
            raise
        # Values of another shape: text in place of a section, a list in place of a number.
        except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
            raise SpecError(
                f"trial spec: {type(error).__name__}: {error}; allowed: the values of "
                "TrialSpec.to_dict(). Rebuild it with TrialSpec.to_dict()."
            ) from error
        for one in dataclasses.fields(spec):
            section = getattr(spec, one.name)
            if dataclasses.is_dataclass(section):
                require_types(section, one.name)
        require_types(spec, "trial")
        require_small_numbers(values)
        return spec


__all__ = [
    "METRIC_COST",
    "TARGET_GROUPS",
    "BaseSpec",
    "ComputeDtype",
    "DataSpec",
    "EvalSpec",
    "LoraInit",
    "LoraSpec",
    "OptimSpec",
    "Quantization",
    "Schedule",
    "TrialSpec",
    "remedy_for_init",
]
