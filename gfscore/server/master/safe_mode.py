"""What a freshly started master may not do yet: locations come from reports, and reports take time (rules 5, 23).

Nothing is deleted before every known chunkserver has reported, or an operator has said that it never will. Nothing is
cloned before that either, unless enough time has passed and enough chunks have been found.
"""

from __future__ import annotations

from gfscore.env import Env
from gfscore.metadata.transaction import CHUNK_COUNT, counter
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.servers import Servers
from gfscore.server.master.state import MasterState

_NAMED_MAX = 3


class SafeMode:
    def __init__(self, state: MasterState, env: Env, config: MasterConfig, servers: Servers) -> None:
        self._state = state
        self._env = env
        self._config = config
        self._servers = servers
        self._until = env.clock.boottime() + config.safe_mode_seconds
        self._may_clone = False

    @property
    def may_delete(self) -> bool:
        return self._servers.heard_all

    @property
    def may_clone(self) -> bool:
        """Once it may, it may for the rest of this life."""
        if not self._may_clone:
            waited = self._env.clock.boottime() >= self._until
            self._may_clone = self._servers.heard_all or (waited and self._found() >= self._config.safe_mode_share)
        return self._may_clone

    @property
    def reason(self) -> str:
        """Why it is active, and what ends it; empty when it is not."""
        if self._servers.heard_all:
            return ""
        unheard = self._servers.unheard
        names = ", ".join(unheard[:_NAMED_MAX]) + (", ..." if len(unheard) > _NAMED_MAX else "")
        waits = f"not heard of since the master's start: {names} (start them, or gfs forget-server ID)"
        if self.may_clone:
            return f"nothing is deleted; {waits}"
        return f"nothing is deleted or cloned; {self._found():.1%} of the chunks are found; {waits}"

    def _found(self) -> float:
        """The share of the chunks of which a replica is known."""
        chunks = counter(self._state.tables, CHUNK_COUNT)
        return min(1.0, len(self._servers.locations) / chunks) if chunks else 1.0
