"""Evaluate an adapter in its serving forms, row by row, and build the evaluation document.

    bundle --KeptBases.serve--> Served --evaluate_served--> evaluation document, one for each form

The document (`lorchestra.evaluation/1`) holds one column for each measured quantity, with one
entry for each row, and the measures over the columns; `trainables.evaluation.measures` defines
the formulas.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import pickle
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainables.base.loading import default_device
from trainables.contract import EVALUATION_FORMAT
from trainables.evaluation.answers import (
    evaluate_completions,
    load_metrics,
    metric_digests,
)
from trainables.evaluation.generation import Ending, complete, end_tokens
from trainables.evaluation.kept import KeptBases
from trainables.evaluation.measures import measured
from trainables.evaluation.rows import EvaluationRows, RowSource, decode, evaluation_rows
from trainables.evaluation.serving import Served, load_served_tokenizer, require_form
from trainables.evaluation_spec import EvaluationSpec
from trainables.packing.batches import batches_by_length
from trainables.packing.rope import rope_switch
from trainables.rows.data import IGNORED_TARGET, EncodedRow, collate
from trainables.training.bundle import read_manifest
from trainables.training.memory import peak_memory_gib
from trainables.training.row_scores import RowScores, batch_scores, in_order

logger = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def evaluate_bundle(
    bundle: Path,
    forms: Sequence[str],
    source: RowSource,
    how: EvaluationSpec,
    *,
    base_model: str | None = None,
    device: str | None = None,
) -> list[dict[str, Any]]:
    """Evaluation document of a bundle in each serving form, loaded one after another.

    Impossible requests are refused before a model is loaded.

    Args:
        bundle: Folder of the bundle.
        forms: Serving forms, of `trainables.evaluation.serving.forms_of` the manifest's base.
        source: The rows to evaluate on.
        how: Settings of the evaluation.
        base_model: Location of the base, where it differs from the manifest's.
        device: Such as `cuda:0`; by default the first CUDA device, else the CPU.

    Raises:
        BundleError: A file of the bundle differs from the manifest.
        BaseModelError: The base cannot be found or loaded, or is not the training base.
        SpecError: A form or metric does not exist.
        DataError: The rows cannot be used.
    """
    manifest = read_manifest(bundle)
    for form in forms:
        require_form(manifest, form)
    evaluator = BundleEvaluator(device)
    documents = [
        evaluator.evaluate(
            bundle, form, source, how, base_model=base_model, later=forms[position + 1 :]
        )
        for position, form in enumerate(forms)
    ]
    evaluator.close()
    return documents


class BundleEvaluator:
    """Evaluates bundles in serving forms, one after another.

    The base stays loaded from one evaluation to the next with the same base, and rows are encoded
    once. So orders of one base should follow one another.

    Args:
        device: Such as `cuda:0`; by default the first CUDA device, else the CPU.
    """

    def __init__(self, device: str | None = None) -> None:
        self._device = default_device() if device is None else torch.device(device)
        self._bases = KeptBases(self._device)
        self._rows: dict[bytes, EvaluationRows] = {}

    @property
    def loads(self) -> int:
        """Number of bases loaded so far."""
        return self._bases.loads

    def evaluate(
        self,
        bundle: Path,
        form: str,
        source: RowSource,
        how: EvaluationSpec,
        *,
        base_model: str | None = None,
        later: Collection[str] = (),
    ) -> dict[str, Any]:
        """Evaluation document of a bundle in a serving form.

        Impossible requests are refused before a model is loaded.

        Args:
            bundle: Folder of the bundle.
            form: Serving form.
            source: The rows to evaluate on; files are read once.
            how: Settings of the evaluation.
            base_model: Location of the base, where it differs from the manifest's.
            later: Forms in which the bundle will be evaluated later.

        Raises:
            BundleError: A file of the bundle differs from the manifest.
            BaseModelError: The base cannot be found or loaded, or is not the training base.
            SpecError: A form or metric does not exist.
            DataError: The rows cannot be used.
        """
        manifest = read_manifest(bundle)
        checked = require_form(manifest, form)
        load_metrics(how.metrics)
        rows = self._encoded(manifest, base_model, source, how)
        _reset_peak_memory(self._device)
        with self._bases.serve(bundle, checked, base_model=base_model, later=later) as served:
            return evaluate_served(served, rows, how)

    def close(self) -> None:
        """Release the kept base."""
        self._bases.drop()

    def _encoded(
        self,
        manifest: Mapping[str, Any],
        base_model: str | None,
        source: RowSource,
        how: EvaluationSpec,
    ) -> EvaluationRows:
        base = manifest["base"]
        key = hashlib.sha256(
            pickle.dumps(
                (base["digest"], base_model or base["model"], manifest["data"], source, how)
            )
        ).digest()
        if key not in self._rows:
            tokenizer = load_served_tokenizer(manifest, base_model)
            # One set of rows is enough: adapters of a sweep share it.
            self._rows = {key: evaluation_rows(manifest, tokenizer, source, how)}
        return self._rows[key]


def evaluate_served(served: Served, rows: EvaluationRows, how: EvaluationSpec) -> dict[str, Any]:
    """The evaluation document of a served adapter as plain values, ready for JSON.

    A loss that is not finite is `null` in its column, and so are the measures over it. `seconds`
    covers reading and writing tokens, without loading; `tokens_per_s` counts the tokens of the
    rows, and with generation also the tokens of prompts and completions, without padding.
    `peak_memory_gib` is the peak since this evaluation began, where the system can reset the peak,
    else since the process began; `served.spare_bytes` do not count.

    Raises:
        SpecError: A metric cannot be found or returned an impossible value; or a completion could
            be longer than the base has positions.
    """
    metrics = load_metrics(how.metrics)
    began = time.perf_counter()
    columns = _forced_columns(served, rows, how.batch_size)
    tokens = sum(len(row.encoded.input_ids) for row in rows.rows)
    if how.generates:
        written = _completions(served, rows, how)
        tokens += sum(map(len, written)) + sum(len(row.prompt) for row in rows.rows)
    seconds = time.perf_counter() - began
    generation = None
    if how.generates:
        predictions = [decode(served.tokenizer, completion) for completion in written]
        references = [row.reference for row in rows.rows]
        columns |= evaluate_completions(how, metrics, predictions, references)
        columns |= {"prediction": predictions, "reference": references}
        generation = {
            "max_new_tokens": how.max_new_tokens,
            "pattern": how.pattern,
            "choices": list(how.choices) or None,
            "metrics": metric_digests(how.metrics) or None,
        }
    return {
        "format": EVALUATION_FORMAT,
        "adapter": served.manifest["digest"],
        "form": served.form,
        "data": dict(rows.data),
        "generation": generation,
        "measures": measured(columns, {metric.name: metric.mode for metric in metrics}),
        "examples": columns,
        "seconds": seconds,
        "rows_per_s": len(rows.rows) / seconds,
        "tokens_per_s": tokens / seconds,
        "peak_memory_gib": peak_memory_gib(served.device) - served.spare_bytes / 2**30,
        "model_bytes": served.model_bytes,
        "adapter_bytes": served.adapter_bytes,
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


@torch.no_grad()
def evaluate_rows(model: Any, rows: Sequence[EncodedRow], batch_size: int) -> RowScores:
    """Teacher-forced scores of rows, in their order, as from `Engine.evaluate_rows`.

    Args:
        model: A causal language model of transformers, possibly wrapped by PEFT.
        rows: Rows with at least one answer token each.
        batch_size: Rows per forward pass; rows of similar length share a pass.
    """
    lengths = [len(row.input_ids) for row in rows]
    return in_order(
        [
            (chosen, _evaluate_batch(model, [rows[number] for number in chosen]))
            for chosen in batches_by_length(lengths, batch_size, rope_switch(model.config))
        ]
    )


def _evaluate_batch(model: Any, rows: Sequence[EncodedRow]) -> RowScores:
    input_ids, labels = (torch.from_numpy(part).to(model.device) for part in collate(rows, 0))
    lengths = torch.tensor([len(row.input_ids) for row in rows], device=model.device)
    mask = torch.arange(input_ids.shape[1], device=model.device) < lengths[:, None]
    # The logits at position t - 1 score the token at t; no other logits are computed.
    is_scored = labels[:, 1:] != IGNORED_TARGET
    kept = is_scored.any(dim=0).nonzero().flatten()
    logits = model(
        input_ids=input_ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=kept
    ).logits
    return batch_scores(
        logits[is_scored[:, kept]],
        labels[:, 1:][is_scored],
        is_scored.sum(dim=1).tolist(),
        [not row.is_cut for row in rows],
    )


def _forced_columns(served: Served, rows: EvaluationRows, batch_size: int) -> dict[str, list[Any]]:
    scores = evaluate_rows(served.model, [row.encoded for row in rows.rows], batch_size)
    return {
        "loss_sum": [loss if math.isfinite(loss) else None for loss in scores.loss_sum],
        "answer_tokens": list(scores.answer_tokens),
        "answer_bytes": [row.answer_bytes for row in rows.rows],
        "correct_tokens": list(scores.correct_tokens),
        "accuracy": [
            int(is_whole and correct == total)
            for correct, total, is_whole in zip(
                scores.correct_tokens, scores.answer_tokens, scores.is_whole, strict=True
            )
        ],
    }


def _completions(served: Served, rows: EvaluationRows, how: EvaluationSpec) -> list[list[int]]:
    trained = served.manifest["data"].get("end_tokens", {}).values()
    ending = Ending(
        tokens=end_tokens(served.model, served.tokenizer, trained),
        max_new_tokens=how.max_new_tokens,
    )
    return complete(served.model, [row.prompt for row in rows.rows], ending, how.batch_size)


def _reset_peak_memory(device: torch.device) -> None:
    """Let the peak of memory use begin at the present value."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # Linux: resets the peak of resident memory to the present value (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        logger.debug("the peak of memory use was not reset: %s", error)
