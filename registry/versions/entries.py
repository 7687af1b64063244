"""Entries of a ledger, moves of aliases and challenges: as values, and as the JSON of a param."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from registry.tracking.limits import shortened

OUTSIDE = "outside lorchestra"
"""`AliasMove.who` of a move that somebody made in MLflow itself."""

# MLflow cuts params at 6000 characters; JSON may write one character as six.
_MAX_WHY = 800
_MAX_WHO = 100


@dataclass(frozen=True, kw_only=True)
class AliasMove:
    """A move of an alias from one version to another.

    Attributes:
        number: Place among all moves of the adapter's aliases, from 1.
        alias: Name of the alias.
        source: Version before the move; `None` if the alias did not exist.
        target: Version after the move; `None` if the alias was removed.
        who: User, or `outside lorchestra`.
        at: Time of the move; for a move from outside, the time of its discovery.
        why: Reason that the user gave.
        is_rollback: Whether the move undoes earlier moves.
        is_done: Whether the alias was set; otherwise a process is about to set it.
    """

    number: int
    alias: str
    source: int | None
    target: int | None
    who: str
    at: datetime
    why: str
    is_rollback: bool = False
    is_done: bool = True


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """A comparison of a candidate with the champion by the gate.

    Attributes:
        champion: Version of the champion.
        candidate: Version of the candidate.
        data: Digest of the rows.
        data_name: `test`, `validation` or a file's name.
        evaluation: Digest of the candidate's evaluation: adapter, form, rows and conditions.
        metric: Measure compared by.
        number: Place among the challenges of this champion on these rows, from 1; 0 before it is
            counted. The same candidate, evaluation and metric again are the same challenge.
        who: User.
        at: Time of the first decision.
    """

    champion: int
    candidate: int
    data: str
    data_name: str
    evaluation: str
    metric: str
    number: int = 0
    who: str
    at: datetime

    @property
    def count_key(self) -> tuple[int, str]:
        """Key of challenges that are counted together: champion and rows."""
        return self.champion, self.data

    def is_same(self, other: Challenge) -> bool:
        """Whether another challenge compares the same numbers: a repetition is not counted."""
        mine, theirs = (
            (*one.count_key, one.candidate, one.evaluation, one.metric) for one in (self, other)
        )
        return mine == theirs


def format_move(move: AliasMove) -> str:
    """Text of a move for its slot; two moves never have equal texts."""
    record: dict[str, Any] = {
        "alias": move.alias,
        "from": move.source,
        "to": move.target,
        "who": shortened(move.who, _MAX_WHO),
        "at": move.at.isoformat(timespec="milliseconds"),
        "why": shortened(move.why, _MAX_WHY),
        "rollback": move.is_rollback,
        # Two processes that make the same move at the same time must not write equal texts.
        "nonce": uuid.uuid4().hex,
    }
    return json.dumps(record)


def parse_move(number: int, text: str, *, is_done: bool) -> AliasMove:
    """The move in a slot."""
    record = json.loads(text)
    return AliasMove(
        number=number,
        alias=record["alias"],
        source=record["from"],
        target=record["to"],
        who=record["who"],
        at=datetime.fromisoformat(record["at"]),
        why=record["why"],
        is_rollback=record["rollback"],
        is_done=is_done,
    )


def format_challenge(challenge: Challenge) -> str:
    """Text of a challenge for its slot; two challenges never have equal texts."""
    record = asdict(challenge) | {
        "who": shortened(challenge.who, _MAX_WHO),
        "at": challenge.at.isoformat(timespec="milliseconds"),
        "nonce": uuid.uuid4().hex,
    }
    return json.dumps(record)


def parse_challenge(text: str) -> Challenge:
    """The challenge in a slot, without the fields that a later release added."""
    record = json.loads(text)
    names = {one.name for one in fields(Challenge)}
    known = {name: value for name, value in record.items() if name in names}
    return Challenge(**known | {"at": datetime.fromisoformat(record["at"])})
