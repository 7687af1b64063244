"""What a sweep does at this moment, and for how long: its phase, the step in it, each host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orchestrator.hosts.members import HostActivity
from orchestrator.wording import format_duration, one_line


@dataclass(frozen=True, kw_only=True)
class Step:
    """One of several pieces of work of a phase.

    Attributes:
        text: The present piece, such as `form 3 of 8: merged, trial 0`.
        since: Start of the piece, on the clock of `Activities`.
        done: Pieces done.
        total: All pieces; 0 if their number says nothing about the time left.
        began: Start of the first piece.
    """

    text: str
    since: float
    done: int
    total: int
    began: float

    def left_s(self, now: float) -> float | None:
        """Seconds that the rest will take at the mean speed so far; `None` before one is done.

        The mean counts whole pieces, so the estimate shrinks while a piece is in work.
        """
        if not self.done or self.total <= self.done:
            return None
        mean = (self.since - self.began) / self.done
        return max(0.0, mean * (self.total - self.done) - (now - self.since))


class Activities:
    """Keeps the present activities with their starts.

    Args:
        clock: Seconds on any clock that runs evenly.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._phase, self._phase_since = "", clock()
        self._step: Step | None = None
        self._wait, self._wait_since = "", clock()
        self._hosts: dict[str, tuple[HostActivity, float]] = {}

    @property
    def phase(self) -> str:
        """Name of the present phase; empty before the first."""
        return self._phase

    def enter(self, phase: str) -> bool:
        """Begin a phase; returns whether the phase is new."""
        if phase == self._phase:
            return False
        self._phase, self._phase_since, self._step = phase, self._clock(), None
        return True

    def step(self, text: str, done: int = 0, total: int = 0) -> bool:
        """Begin a piece of work of the phase; returns whether the piece is new."""
        now, last = self._clock(), self._step
        if last is not None and last.text == text:
            self._step = replace(last, done=done, total=total)
            return False
        self._step = Step(
            text=text,
            since=now,
            done=done,
            total=total,
            began=now if last is None else last.began,
        )
        return True

    def wait(self, text: str) -> bool:
        """Begin to wait for something, or for nothing if empty; returns whether that is new."""
        if text == self._wait:
            return False
        if not self._wait:
            self._wait_since = self._clock()
        self._wait = text
        return True

    def take_hosts(self, hosts: Sequence[HostActivity]) -> list[str]:
        """Note what the hosts do; returns a sentence for each host in a new stage.

        Args:
            hosts: All hosts that have not ended.
        """
        now, news = self._clock(), []
        known, self._hosts = self._hosts, {}
        for host in hosts:
            before = known.get(host.host_id)
            is_same = before is not None and describe_host(before[0]) == describe_host(host)
            self._hosts[host.host_id] = (host, before[1] if before and is_same else now)
            is_decided = before is not None and host.limit and before[0].seats != host.seats
            if before is None or before[0].stage != host.stage or is_decided:
                news.append(f"host {host.host_id}: {describe_stage(host)}")
        return news

    def lines(self) -> list[str]:
        """What is going on, each with its duration; the phase comes first."""
        now = self._clock()
        lines = [_timed(one_line(self._phase), now - self._phase_since)] if self._phase else []
        if self._step is not None:
            line = _timed(one_line(self._step.text), now - self._step.since)
            left = self._step.left_s(now)
            lines.append(line if left is None else f"{line}; about {whole_seconds(left)} left")
        if self._wait:
            lines.append(_timed(one_line(self._wait), now - self._wait_since))
        lines += [
            f"host {name}: {_timed(describe_host(host), now - since)}"
            for name, (host, since) in sorted(self._hosts.items())
        ]
        return lines


def describe_stage(host: HostActivity) -> str:
    """The stage of a host, in a few words."""
    return {
        "starting": f"starting a worker for base {host.form}",
        "loading": f"loading base {host.form}",
        "working": f"base {host.form} is loaded, {_seats(host)}",
        "ending": f"ending, base {host.form}",
    }[host.stage]


def describe_host(host: HostActivity) -> str:
    """What a host does: its stage, or the trials and evaluations in its seats."""
    taken = len(host.trials) + len(host.tasks)
    if not taken or host.stage in ("starting", "loading"):
        return describe_stage(host)
    parts = [_count(host.tasks, "evaluation")] if host.tasks else []
    if host.trials:
        noun = "trial" if len(host.trials) == 1 else "trials"
        parts.insert(0, f"{noun} {', '.join(map(str, host.trials))}")
    return f"base {host.form}, {taken} of {_seats(host)}: {'; '.join(parts)}"


_LIMITS = {
    "memory": "limited by memory",
    "knee": "one more would not pay",
    "no limit": "no limit of the memory is known",
}


def _seats(host: HostActivity) -> str:
    """`4 seats`, with what limits them where the host has decided on them."""
    said = f" ({_LIMITS.get(host.limit, host.limit)})" if host.limit else ""
    return f"{host.seats} {'seat' if host.seats == 1 and said else 'seats'}{said}"


def _count(things: Sequence[object], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _timed(text: str, seconds: float) -> str:
    """The text with its duration in whole seconds."""
    return f"{text} · {whole_seconds(seconds)}"


def whole_seconds(seconds: float) -> str:
    """`7 s` below a minute, then `2:05` or `1:02:05`."""
    return f"{seconds:.0f} s" if seconds < 60 else format_duration(seconds)
