"""Lower ranks of a registered adapter: evaluates each rank, registers the lowest good one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.adapters.evaluating import Evaluator
from orchestrator.errors import SweepError
from orchestrator.spec.complaint import require
from registry import AdapterVersion
from registry.evaluations.evaluation import Evaluation
from trainables.contract import ADAPTER_WEIGHTS

_WHOLE = "whole"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The adapter at a rank, with its evaluation.

    Attributes:
        rank: Rank of the adapter.
        value: Value of the measure.
        adapter_bytes: Size of the file of weights.
        energy: Kept share of the squared singular values of the whole adapter.
    """

    rank: int
    value: float
    adapter_bytes: int
    energy: float


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """Result of shrinking: the evaluated ranks and the registered version, if any.

    Attributes:
        whole: The adapter at its own rank.
        candidates: The lower ranks, the largest first.
        chosen: The registered rank; `None` when no lower rank was within the tolerance.
        version: The registered version.
    """

    whole: Candidate
    candidates: tuple[Candidate, ...]
    chosen: int | None
    version: AdapterVersion | None


def shrink_version(
    version: AdapterVersion,
    ranks: Sequence[int],
    evaluator: Evaluator,
    *,
    measure: str = "loss",
    tolerance: float = 0.01,
) -> Shrunk:
    """Register the adapter at the lowest rank within the tolerance.

    Args:
        version: The adapter to shrink.
        ranks: Ranks to try, below the rank of the adapter.
        evaluator: Evaluates the adapter at each rank, in the version's serving form.
        measure: Measure for the comparison.
        tolerance: Allowed worsening of the measure, as a share of the whole adapter's value.

    Raises:
        SweepSpecError: A rank is not below the adapter's rank, or the measure is unknown.
        SweepError: An adapter could not be evaluated.
        RegistryError: MLflow cannot be used.
    """
    # Imports torch, which commands that only read the registry do not need.
    from trainables.evaluation.shrink import choose_smallest, energy, shrink_bundle

    own = int(version.tags["lora.rank"])
    for rank in ranks:
        require(
            0 < rank < own,
            "--ranks",
            rank,
            f"1 to {own - 1}, below the rank of {version.ref}",
            "Leave it out.",
        )
    with tempfile.TemporaryDirectory() as work:
        whole = evaluator.adapters.pull(version.ref, Path(work) / _WHOLE)
        bundles = {_WHOLE: whole}
        for rank in sorted(set(ranks), reverse=True):
            bundles[str(rank)] = Path(work) / f"rank-{rank}"
            shrink_bundle(whole, rank, bundles[str(rank)])
        form = version.form
        documents = {}
        for result in evaluator.evaluate_bundles(bundles, (form,)):
            if result.document is None:
                raise SweepError(f"{version.ref} at rank {result.key}: {result.error}")
            documents[result.key] = result.document
        found = {key: Evaluation.from_document(document) for key, document in documents.items()}
        known = found[_WHOLE].measures
        require(measure in known, "--metric", measure, ", ".join(known), "Choose one of these.")
        values = {key: one.measures[measure].value for key, one in found.items()}
        kept = energy(whole)
        sizes = {key: (folder / ADAPTER_WEIGHTS).stat().st_size for key, folder in bundles.items()}
        candidates = tuple(
            Candidate(
                rank=int(key), value=values[key], adapter_bytes=sizes[key], energy=kept[int(key)]
            )
            for key in bundles
            if key != _WHOLE
        )
        chosen = choose_smallest(
            values[_WHOLE],
            {one.rank: one.value for one in candidates},
            known[measure].formula.mode,
            tolerance * abs(values[_WHOLE]),
        )
        evaluator.adapters.record_evaluation(version.ref, documents[_WHOLE])
        smaller = None
        if chosen is not None:
            smaller = evaluator.adapters.register(
                bundles[str(chosen)],
                version.name,
                run_id=version.run_id,
                tags={"lorchestra.shrunk_from": str(version.ref)},
                form=form,
            )
            evaluator.adapters.record_evaluation(smaller.ref, documents[str(chosen)])
    return Shrunk(
        whole=Candidate(
            rank=own, value=values[_WHOLE], adapter_bytes=sizes[_WHOLE], energy=kept[own]
        ),
        candidates=candidates,
        chosen=chosen,
        version=smaller,
    )
