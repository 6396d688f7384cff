"""The records of the configuration: as stored in Redis, and as processes use them.

`BotRecord`, `EndpointConfig` and `KeyConfig` are the JSON values of the hash; `BotConfig` is a bot with its policy parsed. A
field that is added needs a default as long as an older version may still publish.
"""

from typing import Any

from msgspec import Struct

from app.domain.records import BotRules
from app.live.sandbox import ClockMode


class Mark(Struct, frozen=True):
    """How far a copy of the configuration is."""

    instance: str
    """Id of the database that it was read from."""
    revision: int
    """The latest revision in that database that the copy includes."""

    def __str__(self) -> str:
        return f"{self.instance}:{self.revision}"

    def covers(self, other: "Mark") -> bool:
        return self.instance == other.instance and self.revision >= other.revision

    @classmethod
    def read(cls, stored: bytes) -> "Mark":
        instance, _, revision = stored.decode().partition(":")
        return cls(instance, int(revision))


class EndpointConfig(Struct, frozen=True):
    """An enabled endpoint of a bot. The dispatcher reads its address and secret from Postgres."""

    id: str
    events: tuple[str, ...]
    """Event types that it subscribes to."""


class BotRecord(Struct, frozen=True):
    """A bot as stored in the hash of Redis."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    """How a sandbox bot's clock moves; None for a bot that is no sandbox."""
    deleted: bool
    policy_version: int
    """0: no policy was saved, and the default one applies."""
    effective_at_ms: int
    """From when on the policy version applies, in ms since the epoch."""
    policy: dict[str, Any]
    """The policy as its admin saved it, in the form that the API accepts."""
    endpoints: tuple[EndpointConfig, ...]


class BotConfig(Struct, frozen=True):
    """A bot as processes use it: `BotRecord` with the policy parsed."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    deleted: bool
    rules: BotRules
    endpoints: tuple[EndpointConfig, ...]
    subscribed: frozenset[str]
    """Event types that at least one endpoint subscribes to."""


class KeyConfig(Struct, frozen=True):
    """An API key that is not revoked."""

    id: str
    name: str
    scopes: frozenset[str]
    bots: frozenset[str] | None
    """Bots that it covers; None: all of them."""
