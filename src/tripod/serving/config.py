"""What a server allows, as one checked value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tripod.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The bounds of one server. Whatever grows with what clients do has one."""

    max_body_bytes: int = 32 * 2**20  # a larger request is refused without being read
    max_waiting_requests: int = 512  # admitted, and without a first token while the engine has no place for them
    max_waiting_tokens: int = 2_000_000  # of their prompts, estimated before they are tokenized
    tenant_share: float = 0.5  # of the free places in the queue, what a tenant may hold beyond its equal part; see Admission
    max_tenant_requests: int | None = None  # of one tenant, waiting and running together
    read_timeout_s: float = 30.0  # a request must have been sent whole in this time
    send_timeout_s: float = 60.0  # a client that takes nothing for so long is given up
    max_unread_events: int = 4096  # of one response that the client has not taken; then it is given up, too
    stall_timeout_s: float = 30.0  # something runs and no token came for so long: not healthy

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_waiting_requests", "max_waiting_tokens", "max_tenant_requests", "max_unread_events"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} lets nothing in; give at least 1")
        for name in ("tenant_share", "read_timeout_s", "send_timeout_s", "stall_timeout_s"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ConfigError(f"{name}={value} is not a positive number")
