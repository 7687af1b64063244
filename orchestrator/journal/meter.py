"""Time and devices that a sweep has spent, folded from its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Usage(NamedTuple):
    """Device-seconds of hosts: running time multiplied by the number of devices."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0


@dataclass(kw_only=True)
class Meter:
    """Time and devices that a sweep has spent over all sessions.

    A killed session counts up to its last event.

    Attributes:
        began: Start of the present session in seconds since the epoch; `None` between sessions.
        begins: Start of each session.
        seconds: Duration of all ended sessions.
        cpu_s: CPU-seconds of hosts and evaluation workers, with those of the present session.
        gpu_s: GPU-seconds of hosts and evaluation workers, with those of the present session.
    """

    began: float | None = None
    begins: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    _last: float = 0.0
    _session: tuple[float, float] = (0.0, 0.0)

    @property
    def last_at(self) -> float:
        """Time of the last event of a session, in seconds since the epoch; 0 before the first."""
        return self._last

    def begin(self, at: float) -> None:
        """Begin a session; an earlier session without an end counts up to its last event."""
        self.lose()
        self.began = self._last = at
        self.begins.append(at)

    def lose(self) -> None:
        """End the present session, if any, at its last event: the driver was killed."""
        self.end(self._last)

    def are_together(self, start: float, end: float) -> bool:
        """Whether no session began between `start` and `end`."""
        return not any(start < began <= end for began in self.begins)

    def end(self, at: float) -> None:
        """End the present session, if any."""
        if self.began is not None:
            self._last = max(self._last, at)
            self.seconds += max(0.0, at - self.began)
        self.began, self._session = None, (0.0, 0.0)

    def see(self, at: float) -> None:
        """Note the time of an event."""
        if self.began is not None:
            self._last = max(self._last, at)

    def use(self, cpu_s: float, gpu_s: float) -> None:
        """Set the total use of devices by hosts in this session."""
        self.cpu_s += cpu_s - self._session[0]
        self.gpu_s += gpu_s - self._session[1]
        self._session = (cpu_s, gpu_s)

    def add(self, cpu_s: float, gpu_s: float) -> None:
        """Add use of devices by evaluation workers."""
        self.cpu_s += cpu_s
        self.gpu_s += gpu_s

    def wall_clock_s(self, now: float | None = None) -> float:
        """Duration of all sessions up to `now`; without `now`, up to the last event."""
        if self.began is None:
            return self.seconds
        return self.seconds + max(0.0, (self._last if now is None else now) - self.began)
