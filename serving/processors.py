"""How many processors this process may use: what affinity and control group allow, not what the host has."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available(cgroup: Path = _CGROUP) -> int:
    """At least 1. A fractional quota is rounded up: 1.5 processors are worth two threads."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return allowed if quota is None else max(1, min(allowed, -int(-quota // 1)))


def _quota(cgroup: Path) -> float | None:
    try:  # version 2: "max 100000" or "150000 100000"
        allowance, period = (cgroup / "cpu.max").read_text().split()
        return None if allowance == "max" else int(allowance) / int(period)
    except (OSError, ValueError):
        pass
    try:  # version 1
        allowed_us = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        return None if allowed_us <= 0 else allowed_us / int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return None
