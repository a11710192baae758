"""What each caller may ask for: a token bucket of items for each identity.

Knows neither who the callers are nor what items are; the clock is given.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from serving.errors import QuotaExceeded
from serving.settings import Settings

_MOST_CALLERS = 10_000  # remembered; who has not called for longest is forgotten, and begins with a full bucket


@dataclass(slots=True)
class _Bucket:
    items: float
    at: float


class Accounts(Protocol):
    """Who keeps the callers' buckets: this process, or one that it asks."""

    async def charge(self, caller: str, items: int) -> None:
        """What `Quotas.spend` promises."""


class Quotas:
    """`items_per_s` for each caller, saved up to `burst` items; a rate of 0 means that there is no quota."""

    def __init__(self, items_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = items_per_s
        self._burst = float(burst)
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def spend(self, caller: str, items: int) -> None:
        """Take `items` from the caller's bucket; raises `QuotaExceeded`, with when to try again, if they are not there.

        A request of more than `burst` items passes when the bucket is full, and leaves a debt.
        """
        if not self._rate:
            return
        bucket = self._bucket(caller)
        wanted = min(float(items), self._burst)
        if bucket.items < wanted:
            most = max(0, int(bucket.items))
            message = f"quota: got {items} items, wanted at most {most} now, and {self._rate:g} more each second"
            raise QuotaExceeded(message, (wanted - bucket.items) / self._rate)
        bucket.items -= items

    async def charge(self, caller: str, items: int) -> None:
        """The same, for who cannot tell whether somebody has to be asked."""
        self.spend(caller, items)

    def _bucket(self, caller: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(caller, _Bucket(self._burst, now))
        self._buckets.move_to_end(caller)
        if len(self._buckets) > _MOST_CALLERS:
            self._buckets.popitem(last=False)
        bucket.items = min(self._burst, bucket.items + (now - bucket.at) * self._rate)
        bucket.at = now
        return bucket


def quotas_of(settings: Settings) -> Quotas:
    """As the settings say."""
    return Quotas(settings.quota_items_per_s, settings.quota_burst_items or settings.max_request_items)
