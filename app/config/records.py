"""The records of the configuration: as stored in Redis, and as processes use them.

`BotRecord`, `EndpointConfig` and `KeyConfig` are the JSON values of the hash; `BotConfig` is a bot with its policy parsed. A
field that is added needs a default as long as an older version may still publish.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, structs

from app.domain.records import BotRules, SessionQuota
from app.live.sandbox import ClockMode
from app.settings import Settings

SIGNED_IN = "adjourn.signed_in"
"""Name in a request's ASGI scope: the digest of the key that a browser signed in with. Only the console sets it, for its calls of
the API within the process; no header can.
"""


class Mark(Struct, frozen=True):
    """How far a copy of the configuration is."""

    instance: str  # id of the database that it was read from
    revision: int  # the latest revision in that database that the copy includes

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

    id: str  # its UUID
    events: tuple[str, ...]  # the event types that it subscribes to


class BotRecord(Struct, frozen=True):
    """A bot as stored in the hash of Redis."""

    id: str  # the name in its paths
    name: str  # its name for people
    sandbox: bool  # whether it has a clock of its own and its sessions are left out of statistics
    clock_mode: ClockMode | None  # how a sandbox bot's clock moves; None for any other bot
    deleted: bool  # it takes no entries any more; its open sessions still close
    policy_version: int  # 0: no policy was saved, and the default one applies
    effective_at_ms: int  # from when on the policy version applies, in ms since the epoch
    policy: dict[str, Any]  # the policy as its admin saved it, in the form that the API accepts
    endpoints: tuple[EndpointConfig, ...]  # its enabled endpoints
    limits: dict[str, int] = {}  # its own limits, by the name in `BotLimits`; of the others the settings have the value


class BotLimits(Struct, frozen=True):
    """Limits of a bot, each named as the setting that is its default; 0: no limit."""

    rate_entries: int = 0
    rate_bytes: int = 0
    max_open_sessions: int = 0
    max_endpoints: int = 0
    session_max_entries: int = 0
    session_max_bytes: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "BotLimits":
        """The defaults."""
        return cls(**{name: getattr(settings, name) for name in cls.__struct_fields__})

    def with_overrides(self, own: Mapping[str, int]) -> "BotLimits":
        """These limits with a bot's own in their place; a newer version may have limits that this one does not know."""
        return structs.replace(self, **{name: limit for name, limit in own.items() if name in self.__struct_fields__})

    @property
    def session_quota(self) -> SessionQuota:
        """The part that decisions need."""
        return SessionQuota(self.session_max_entries, self.session_max_bytes)


class BotConfig(Struct, frozen=True):
    """A bot as processes use it: `BotRecord` with the policy parsed."""

    id: str
    name: str
    sandbox: bool
    clock_mode: ClockMode | None
    deleted: bool
    rules: BotRules  # its policy and version
    endpoints: tuple[EndpointConfig, ...]
    subscribed: frozenset[str]  # the event types that at least one endpoint subscribes to
    limits: BotLimits  # those that apply to it


class KeyConfig(Struct, frozen=True):
    """An API key that is not revoked."""

    id: str  # its UUID
    name: str  # its name for people
    scopes: frozenset[str]  # of `ingest`, `read` and `admin`
    bots: frozenset[str] | None  # the bots that it covers; None: all of them
    expires_at_ms: int | None = None  # from when on it is refused, in ms since the epoch; None: it does not expire
    limits: dict[str, int] = {}  # its own limits, each by the name of the setting that is its default

    def accepted_at(self, now_ms: int) -> bool:
        """Whether requests with it are accepted: it has not expired."""
        return self.expires_at_ms is None or now_ms < self.expires_at_ms
