"""The registry at one address: every operation on adapter versions as a method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mlflow import MlflowClient

from registry.bundles import loading, registration, warmstart
from registry.evaluations import comparing, evaluation_runs, harness_runs, promotion
from registry.evaluations.comparison import Comparison
from registry.evaluations.evaluation import Evaluation
from registry.evaluations.gate import PromotionDecision, PromotionRule
from registry.tracking.connection import connect, without_secrets
from registry.versions import aliases, garbage, ledger, versions
from registry.versions.entries import AliasMove, Challenge
from registry.versions.garbage import Garbage
from registry.versions.refs import AdapterRef
from registry.versions.versions import AdapterVersion


class Registry:
    """Adapter versions in MLflow: registered, evaluated, promoted, brought back.

    >>> adapters = Registry("sqlite:///runs/mlflow.db")
    >>> champion = adapters.get("wordnet-classes@champion")
    >>> str(champion.ref), champion.aliases
    ('wordnet-classes/1', ('champion',))
    >>> [(move.alias, move.target) for move in adapters.history("wordnet-classes")]
    [('champion', 1)]
    >>> adapters.pull("wordnet-classes@champion", "adapter").name
    'adapter'

    A `ref` is `name@alias`, `name/version`, `name/version@step-N` or `name`, which is the newest
    version. Every method raises `RefError` for a name or reference that cannot be read,
    `AdapterNotFoundError` for an unknown version, and `TrackingError` when MLflow cannot be used.
    Arguments and further errors are documented at the function that a method calls.

    The connection opens at the first call. A copy in another process opens a new one.

    Attributes:
        tracking_uri: MLflow server or database.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri

    def __repr__(self) -> str:
        return f"Registry({without_secrets(self.tracking_uri)!r})"

    def __reduce__(self) -> tuple[type[Registry], tuple[str]]:
        return Registry, (self.tracking_uri,)

    @functools.cached_property
    def _client(self) -> MlflowClient:
        return connect(self.tracking_uri)

    # ------------------------------------------------------------------------------------ reading

    def versions(self, name: str | None = None) -> list[AdapterVersion]:
        """All versions of one adapter or of all, by name, the newest first."""
        return versions.list_versions(self._client, name)

    def get(self, ref: AdapterRef | str) -> AdapterVersion:
        """The version that a reference points at now."""
        return versions.get_version(self._client, ref)

    def get_whole(self, ref: AdapterRef | str) -> AdapterVersion:
        """The version of a reference; a reference to an earlier step is refused."""
        return aliases.get_whole(self._client, ref)

    def evaluations(
        self,
        ref: AdapterRef | str,
        *,
        form: str | None = None,
        data: str | None = None,
        with_examples: bool = True,
    ) -> list[Evaluation]:
        """Evaluations of a version, the newest first."""
        return evaluation_runs.list_evaluations(
            self._client, ref, form=form, data=data, with_examples=with_examples
        )

    def history(self, name: str) -> list[AliasMove]:
        """All moves of an adapter's aliases, the oldest first."""
        return ledger.history(self._client, name)

    def challenges(self, name: str) -> list[Challenge]:
        """All challenges of an adapter's champions, the oldest first."""
        return ledger.challenges(self._client, name)

    def compare(self, refs: Sequence[AdapterRef | str], *, confidence: float = 0.95) -> Comparison:
        """Two or more versions side by side."""
        return comparing.compare(self._client, refs, confidence=confidence)

    def best_specs(
        self,
        name: str,
        limit: int = 4,
        *,
        metric: str = "eval_loss",
        mode: Literal["min", "max"] = "min",
    ) -> list[dict[str, Any]]:
        """Training settings of an adapter's best versions."""
        return warmstart.best_specs(self._client, name, limit, metric=metric, mode=mode)

    # -------------------------------------------------------------------------------------- files

    def pull(self, ref: AdapterRef | str, destination: str | Path) -> Path:
        """Copy a version's checked bundle to a folder."""
        return loading.pull(self._client, ref, destination)

    def load(
        self, ref: AdapterRef | str, *, base_model: str | None = None, form: str | None = None
    ) -> Any:
        """A version as an MLflow model that completes prompts."""
        return loading.load(self._client, ref, base_model=base_model, form=form)

    # ------------------------------------------------------------------------------------ writing

    def register(
        self,
        bundle: Path,
        name: str,
        *,
        run_id: str | None = None,
        tags: Mapping[str, str] | None = None,
        form: str = "trained",
        checkpoints: Mapping[int, Path] = MappingProxyType({}),
        card: str = "",
    ) -> AdapterVersion:
        """Register a bundle as the next version of an adapter."""
        return registration.register(
            self._client,
            bundle,
            name,
            run_id=run_id,
            tags=tags,
            form=form,
            checkpoints=checkpoints,
            card=card,
        )

    def record_evaluation(self, ref: AdapterRef | str, document: Mapping[str, Any]) -> str:
        """Record a version's evaluation; returns the run id."""
        return evaluation_runs.record_evaluation(self._client, ref, document)

    def record_harness(self, ref: AdapterRef | str, results: Mapping[str, Any]) -> str:
        """Record harness results of a version; returns the run id."""
        return harness_runs.record_harness(self._client, ref, results)

    # ------------------------------------------------------------------------------------ aliases

    def promote(
        self,
        ref: AdapterRef | str,
        rule: PromotionRule,
        *,
        why: str = "",
        reevaluate: Callable[[Sequence[AdapterVersion]], None] | None = None,
        force: bool = False,
    ) -> PromotionDecision:
        """Make a version champion if it beats the champion."""
        return promotion.promote(
            self._client, ref, rule, why=why, reevaluate=reevaluate, force=force
        )

    def rollback(self, name: str, *, alias: str = aliases.CHAMPION, why: str = "") -> AliasMove:
        """Point an alias back at its previous version."""
        return aliases.rollback(self._client, name, alias=alias, why=why)

    def set_alias(self, ref: AdapterRef | str, alias: str, *, why: str = "") -> AdapterVersion:
        """Point an alias at a version."""
        return aliases.set_alias(self._client, ref, alias, why=why)

    def drop_alias(self, name: str, alias: str, *, why: str = "") -> None:
        """Remove an alias from an adapter."""
        aliases.drop_alias(self._client, name, alias, why=why)

    def retire(self, ref: AdapterRef | str, reason: str) -> AdapterVersion:
        """Take a version out of use and remove the version's aliases."""
        return aliases.retire(self._client, ref, reason)

    def unretire(self, ref: AdapterRef | str) -> AdapterVersion:
        """Bring a retired version back into use."""
        return aliases.unretire(self._client, ref)

    # ----------------------------------------------------------------------------------- cleaning

    def find_garbage(self, *, older_than_s: float = 86400) -> list[Garbage]:
        """Stored models that no version needs, the oldest first."""
        return garbage.find_garbage(self._client, older_than_s=older_than_s)

    def collect_garbage(self, found: Sequence[Garbage]) -> list[Garbage]:
        """Delete stored models without a version; returns the deleted models."""
        return garbage.collect_garbage(self._client, found)
