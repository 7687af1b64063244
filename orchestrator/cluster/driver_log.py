"""What the driver of a submitted sweep prints, read in pieces that neither repeat nor miss lines.

In SidecarMode, KubeRay puts a container into the head's pod that submits the job and prints the
job's log. The API server gives lines of the last N seconds: each piece is asked for with some
seconds too many, and lines that were read before are dropped by their times, which are the node's.
"""

from __future__ import annotations

import re
import time

from orchestrator.cluster.api import Kube
from orchestrator.cluster.faults import Refused

SUBMITTER = "ray-job-submitter"
"""The container that prints the driver's log."""

_OVERLAP_S = 10
_NOT_STARTED = (400, 404)
_COLORS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_COMPLAINT = "lorchestra: "


class DriverLog:
    """The log of one sweep's drivers, over all attempts.

    Attributes:
        complaint: The last error that a driver printed, without `lorchestra: `; empty without one.
    """

    def __init__(self) -> None:
        self.complaint = ""
        self._pod, self._read_at = "", 0.0
        self._newest, self._at_newest = "", set[str]()

    def read_on(self, kube: Kube, pod: str) -> list[str]:
        """Lines since the last call; the last ten thousand of a pod that was not read before.

        A pod whose driver has not begun, or that is gone, has no lines.

        Raises:
            Refused: The server refuses.
            Unreachable: The server does not answer.
        """
        if pod != self._pod:
            self._pod, self._newest, self._at_newest = pod, "", set()
        now = time.monotonic()
        since_s = None if not self._newest else round(now - self._read_at) + _OVERLAP_S
        try:
            text = kube.log(pod, SUBMITTER, since_s)
        except Refused as refused:
            if refused.answer.status in _NOT_STARTED:
                return []
            raise
        self._read_at = now
        *whole, _ = text.split("\n")
        # The last line may be cut off; it comes again, whole.
        return [self._heard(line) for line in whole if self._is_new(line)]

    def _is_new(self, line: str) -> bool:
        at = line.partition(" ")[0]
        if at < self._newest or (at == self._newest and line in self._at_newest):
            return False
        if at > self._newest:
            self._newest, self._at_newest = at, set()
        self._at_newest.add(line)
        return True

    def _heard(self, line: str) -> str:
        text = _COLORS.sub("", line.partition(" ")[2]).rstrip("\r")
        if text.startswith(_COMPLAINT) and ": " in text[len(_COMPLAINT) :]:
            self.complaint = text[len(_COMPLAINT) :]
        return text
