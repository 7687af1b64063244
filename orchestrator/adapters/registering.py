"""Registers the best adapters of a sweep as versions and puts the best of them to the gate.

Registering again adds nothing: an existing version is found by its bundle's digest, an existing
evaluation by its rows and settings.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.adapters.evaluating import Evaluator, Rows
from orchestrator.finals.forms import read_evaluations
from orchestrator.finals.standings import Standing, deciding_split, rank_finalists
from orchestrator.finals.telling import Tell, tell_nobody
from orchestrator.hosts.cluster import ray_for_evaluation
from orchestrator.hosts.members import group_key
from orchestrator.interrupts import raise_swallowed
from orchestrator.journal.events import AdapterRegistered, PromotionDecided
from orchestrator.journal.history import SweepHistory, TrialRecord
from orchestrator.journal.recording import SweepRecord
from orchestrator.journal.sweep_storage import SweepStorage
from orchestrator.report.delivery import Delivery
from orchestrator.report.report import build_report
from orchestrator.spec.finals_sections import RegisterSpec, same_form
from orchestrator.spec.sweep import SweepSpec
from registry import (
    AdapterVersion,
    PromotionRule,
    Registry,
    TrackingError,
)
from registry.bundles.card import CardFacts, build_card
from registry.bundles.integrity import read_bundle
from registry.evaluations.evaluation import Evaluation
from trainables.rows.splits import read_raw_splits
from trainables.spec import TrialSpec

logger = logging.getLogger(__name__)


def registrants(spec: SweepSpec, history: SweepHistory) -> list[Standing]:
    """The finalists whose adapters become versions, best first."""
    top = 0 if spec.register is None else spec.register.top
    return [one for one in rank_finalists(spec, history) if one.adapter.bundle][:top]


@dataclass(frozen=True, kw_only=True)
class Registration:
    """Registers the best adapters of a sweep.

    Attributes:
        spec: The sweep, with a section `register`.
        record: Log and history of the sweep.
        delivery: Finds the MLflow runs of the trials.
        storage: Storage with the bundles.
        adapters: The registry.
        tell: Shows which adapter is in work.
    """

    spec: SweepSpec
    record: SweepRecord
    delivery: Delivery
    storage: SweepStorage
    adapters: Registry
    tell: Tell = tell_nobody

    def register_finalists(self) -> None:
        """Register the finalists as versions and put the best version to the promotion gate.

        Raises:
            RegistryError: MLflow cannot be used, or a bundle has changed since its trial.
        """
        section = self.spec.register
        if section is None:
            return
        for rank, standing in enumerate(registrants(self.spec, self.record.history), 1):
            raise_swallowed()
            self.tell(f"registering the adapter of trial {standing.adapter.number}")
            version = self._register(section, rank, standing)
            if rank == 1 and section.promote:
                self._promote(section, version)

    def _register(self, section: RegisterSpec, rank: int, standing: Standing) -> AdapterVersion:
        trial = standing.adapter
        bundle = self.storage.fetch_bundle(trial.number)
        facts = self._facts(section, rank, standing, read_bundle(bundle))
        every = self.spec.eval.keep_every
        kept = range(every, trial.step, every) if every else range(0)
        tags = {
            "lorchestra.sweep": str(self.record.history.sweep_id),
            "lorchestra.trial": str(trial.number),
            "lorchestra.rank": str(rank),
        }
        if standing.half_width is not None:
            tags |= {
                "finals.metric": standing.metric,
                "finals.mean": f"{standing.mean:.6g}",
                "finals.half_width": f"{standing.half_width:.6g}",
                "finals.runs": str(len(standing.values)),
            }
        complete = functools.partial(
            self.adapters.register,
            bundle,
            section.name,
            run_id=self._run_of(trial),
            tags=tags,
            form=facts.form,
            checkpoints=self.storage.fetch_kept(trial.number, kept),
        )
        version = complete(card=build_card(facts))
        # Again with the version number in the card, which is known only now.
        version = complete(card=build_card(replace(facts, version=version.version)))
        for document in read_evaluations(trial, self.storage):
            self.adapters.record_evaluation(version.ref, document)
        # Last: without this event, a later run registers again and completes the version.
        if trial.ref != str(version.ref):
            self.record.add(
                AdapterRegistered(trial=trial.number, ref=str(version.ref), digest=version.digest)
            )
        return version

    def _facts(
        self, section: RegisterSpec, rank: int, standing: Standing, manifest: Mapping[str, Any]
    ) -> CardFacts:
        history, trial = self.record.history, standing.adapter
        sweep = {
            "name": self.spec.name,
            "id": history.sweep_id,
            "trials": len(history.searched()),
            "rank": rank,
            "metric": standing.metric,
            "mean": standing.mean,
            "half_width": standing.half_width,
            "runs": len(standing.values),
        }
        base = history.base_metrics.get(group_key(TrialSpec.from_dict(trial.spec)), {})
        return CardFacts(
            name=section.name,
            manifest=manifest,
            form=same_form(section.form, trial.spec["base"]["quantization"]),
            sweep={key: value for key, value in sweep.items() if value is not None},
            evaluations=[
                Evaluation.from_document(document)
                for document in read_evaluations(trial, self.storage)
            ],
            base_scores={
                split: {name.partition("_")[2]: value for name, value in metrics.items()}
                for split, metrics in base.items()
            },
            licenses={str(of): name for of, name in section.licenses.items()},
            confidence=section.confidence,
            verdict=build_report(self.spec, history, self.storage.folder).verdict.text,
        )

    def _promote(self, section: RegisterSpec, version: AdapterVersion) -> None:
        rule = PromotionRule(
            metric=section.measure(self.spec.objective.metric),
            form=version.form,
            min_improvement=section.min_improvement,
            confidence=section.confidence,
        )
        self.tell(f"comparing {version.ref} with the champion")
        decision = self.adapters.promote(
            version.ref,
            rule,
            why=f"sweep {self.spec.name} ({self.record.history.sweep_id})",
            reevaluate=lambda versions: self._evaluate(versions, rule.form),
        )
        self.record.add(
            PromotionDecided(
                ref=str(version.ref), promoted=decision.promoted, reason=decision.reason
            )
        )

    def _evaluate(self, versions: Sequence[AdapterVersion], form: str) -> None:
        """Evaluate versions of other sweeps on the rows of this sweep."""
        splits = read_raw_splits(self.spec.data)
        name = deciding_split(self.spec)
        refs = ", ".join(str(version.ref) for version in versions)
        self.tell(f"measuring {refs} on the {name} rows of this sweep, for the comparison")
        split = splits.validation if splits.test is None else splits.test
        with ray_for_evaluation() as shape:
            evaluator = Evaluator(
                rows=Rows.of_split(split, name, self.spec.data),
                how=replace(self.spec.finals.evaluation, skip_cut=True),
                adapters=self.adapters,
                shape=shape,
                forms=(form,),
            )
            for result in evaluator.evaluate(versions):
                if result.error:
                    logger.warning("%s cannot be evaluated: %s", result.key, result.error)

    def _run_of(self, trial: TrialRecord) -> str:
        """The id of the trial's MLflow run, which the version links to.

        Raises:
            TrackingError: The trial has not been delivered to MLflow yet.
        """
        run_id = self.delivery.trial_run(trial.number)
        if run_id is None:
            problem = self.delivery.problem or "it is slow"
            raise TrackingError(
                f"trial {trial.number}: MLflow has no run of the trial yet ({problem}); allowed: "
                "adapters of recorded trials. Run the sweep again when MLflow is back."
            )
        return run_id
