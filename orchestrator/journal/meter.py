"""What a sweep has spent, folded from its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Usage(NamedTuple):
    """Device-seconds of this session's hosts: seconds up times number of devices."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(kw_only=True)
class Meter:
    """Time and devices that a sweep has spent over all sessions.

    A session that was killed counts up to its last event.

    Attributes:
        began: When the session under way began, in seconds since the epoch; `None` between two.
        begins: When each session began.
        seconds: Of the sessions before it.
        cpu_s: CPU-seconds of hosts, those of the session under way included.
        gpu_s: GPU-seconds of hosts.
    """

    began: float | None = None
    begins: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    _last: float = 0.0
    _session: tuple[float, float] = (0.0, 0.0)

    def begin(self, at: float) -> None:
        """Begin a session; a session without an end ended with its last event."""
        self.lose()
        self.began = self._last = at
        self.begins.append(at)

    def lose(self) -> None:
        """The session under way, if any, was killed after its last event."""
        self.end(self._last)

    def are_together(self, start: float, end: float) -> bool:
        """Whether no session began between two moments."""
        return not any(start < began <= end for began in self.begins)

    def end(self, at: float) -> None:
        """The session is over."""
        if self.began is not None:
            self.seconds += max(0.0, at - self.began)
        self.began, self._session = None, (0.0, 0.0)

    def see(self, at: float) -> None:
        """Something happened."""
        if self.began is not None:
            self._last = max(self._last, at)

    def use(self, cpu_s: float, gpu_s: float) -> None:
        """Hosts have been up for so long in this session, in all."""
        self.cpu_s += cpu_s - self._session[0]
        self.gpu_s += gpu_s - self._session[1]
        self._session = (cpu_s, gpu_s)

    def add(self, cpu_s: float, gpu_s: float) -> None:
        """Count devices that workers beside the hosts have used."""
        self.cpu_s += cpu_s
        self.gpu_s += gpu_s

    def wall_clock_s(self, now: float | None = None) -> float:
        """Seconds that the sweep was run; without a time, up to the last event."""
        if self.began is None:
            return self.seconds
        return self.seconds + max(0.0, (self._last if now is None else now) - self.began)
