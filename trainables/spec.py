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
    settle_floats,
    show,
)
from trainables.data_spec import DataSpec
from trainables.errors import SpecError
from trainables.functions import FORM, names_function
from trainables.optim_spec import OptimSpec

Quantization = Literal["nf4", "fp4", "int8", "none"]
ComputeDtype = Literal["auto", "bfloat16", "float16", "float32"]
Dense = Literal["auto"] | bool
LoraInit = Literal["kaiming", "gaussian", "orthogonal", "eva"]

TARGET_GROUPS = ("attention", "mlp", "all-linear")
"""Names of groups of linear layers; `packing.lora` resolves each group on a real model."""

_SHARED = "it changes the base's weights, which the trials of a host share"
_REFUSED_INITS = {
    **dict.fromkeys(("pissa", "pissa_niter", "olora", "corda", "loftq", "lora_ga"), _SHARED),
    "mica": "it needs a base of full-precision weights",
}
"""Refused values of PEFT's `init_lora_weights`, each with the reason."""

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
        dense: Keep 4-bit weights dequantized as well, in the compute type, instead of dequantizing
            them in each pass: the same numbers bit for bit, for two more bytes per weight (four in
            float32). `auto` does so on a GPU as long as its memory is forecast to suffice.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    model: str
    revision: str | None = None
    quantization: Quantization = "nf4"
    double_quant: bool = True
    compute_dtype: ComputeDtype = "auto"
    dense: Dense = "auto"

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
        require(
            self.dense == "auto" or type(self.dense) is bool,
            "base.dense",
            self.dense,
            "auto, true or false",
            "Use auto.",
        )


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
        settle_floats(self)
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
    "TrialSpec",
    "remedy_for_init",
]
