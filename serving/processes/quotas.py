"""The quotas as a front end knows them: the engine process keeps the accounts of all front ends together."""

from __future__ import annotations

from serving.errors import EngineFailed, QuotaExceeded
from serving.handover import Remote


class AskedQuotas:
    """`enabled`: whether there are any; else nobody is asked. `remote` is the engine process of now."""

    def __init__(self, enabled: bool) -> None:
        self.remote: Remote | None = None
        self._enabled = enabled

    async def charge(self, caller: str, items: int) -> None:
        """Take `items` from the caller's bucket; raises `QuotaExceeded`, or `EngineFailed` if nobody can be asked."""
        if not self._enabled:
            return
        if self.remote is None:
            raise EngineFailed
        refusal = await self.remote.ask("spend", {"caller": caller, "items": items})
        if refusal:
            raise QuotaExceeded(refusal["message"], refusal["retry_after_s"])
