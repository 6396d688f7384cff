"""Every setting of the product, and the only reader of the environment.

A setting's variable is its field's name in capitals (`tick_ms` is `TICK_MS`); its unit is in its name.
`.env.example` lists them with their descriptions and defaults; a test compares. It opens no connection, and no file but `.env`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.domain.records import SessionQuota

ENV_FILE = Path(".env")
_ASYNCPG = "postgresql+asyncpg"
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
_REDIS_SCHEMES = ("redis", "rediss", "unix")

ADMIN_KEY_PATTERN = r"^adj_[A-Za-z0-9_-]{43,200}$"

SECRETS_KEY_FILE = "secrets.key"
"""The file in VAR_DIR that is made where Postgres is embedded."""

PrivateAddresses = bool | Literal["loopback"]
"""All private addresses, none, or loopback only."""


class Settings(BaseSettings):
    """The settings of a deployment, frozen once read.

    `Settings()` reads the environment alone, `Settings.load()` also the file `.env` of the working directory.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    # Servers
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="Redis for live sessions: redis://, rediss://, unix:// or redis+sentinel://. Unset: one under VAR_DIR.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,
        description="Postgres for closed sessions: postgresql://. Unset: an embedded Postgres under VAR_DIR.",
    )
    database_read_url: str | None = Field(
        default=None,
        repr=False,
        description="A replica of DATABASE_URL that answers lists, analytics and exports. Unset: DATABASE_URL answers them.",
    )
    var_dir: Path = Field(default=Path("var"), description="Folder of the embedded servers' data and of run-time files.")
    embedded_redis_max_mb: int | None = Field(
        default=None,
        ge=16,
        description="Memory bound of the embedded Redis, in MB. Unset: half of this machine's or container's.",
    )
    host: str = Field(default="127.0.0.1", description="Address that the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port that the API listens on; 0 takes a free one.")
    api_workers: int = Field(default=1, ge=1, le=64, description="API processes that `adjourn serve` runs.")

    # Live sessions
    shards: int = Field(default=16, ge=1, le=1024, description="Shards of the live keys; fixed at the first start on a Redis.")
    appendfsync: Literal["always", "everysec", "no"] = Field(
        default="always",
        description="Expected `appendfsync` of Redis; /readyz names a weaker one.",
    )
    redis_timeout_s: float = Field(default=1.0, gt=0, description="Longest wait for one reply of Redis, in seconds.")
    ingest_deadline_s: float = Field(
        default=1.8, gt=0, description="Longest wait of an ingest request before it answers 503, in seconds."
    )
    max_skew_ms: int = Field(
        default=500, ge=1, description="Largest accepted difference between a commit's clock and Redis's, in milliseconds."
    )
    state_cache_bytes: int = Field(default=64 << 20, ge=0, description="Live states that a process caches, in bytes.")
    max_batch_entries: int = Field(default=500, ge=1, description="Entries accepted in one batch request.")
    max_body_bytes: int = Field(default=1_000_000, ge=1024, description="Longest request body, in bytes.")
    bodies_max_bytes: int = Field(
        default=32 << 20,
        ge=1024,
        description="Bodies of entries that one process works on at once, in bytes; three quarters for one key at most.",
    )
    tls_cert_file: Path | None = Field(
        default=None, description="Certificate chain (PEM); with TLS_KEY_FILE the API answers by https. Unset: http."
    )
    tls_key_file: Path | None = Field(default=None, description="Private key (PEM) of TLS_CERT_FILE.")
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="Addresses and networks, by commas, whose X-Forwarded-For and X-Forwarded-Proto count. Empty: none.",
    )
    cors_origins: str = Field(
        default="",
        description="Origins of browsers, by commas, that may call all routes but those that take entries. Empty: none.",
    )
    hsts_max_age_s: int = Field(
        default=0,
        ge=0,
        description="How long browsers insist on https (Strict-Transport-Security), in seconds. 0: no such header.",
    )
    worker_metrics_port: int | None = Field(
        default=None, ge=1, le=65535, description="Port on which `adjourn worker` answers /metrics; unset: it does not."
    )
    metrics_need_key: bool = Field(default=False, description="Whether /metrics needs a key with scope `read` for all bots.")
    docs_need_key: bool = Field(default=False, description="Whether /docs and /openapi.json need a key, of any scope.")

    operations_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of HOST for /metrics, /docs and /openapi.json, with /healthz and /readyz. Unset: they are on PORT.",
    )

    # Rates: ten seconds' worth may be spent at once
    rate_entries: int = Field(default=5000, ge=0, description="Entries a second of one key, and of one bot. 0: no limit.")
    rate_bytes: int = Field(
        default=10_000_000, ge=0, description="Bytes of entries a second of one key, and of one bot. 0: no limit."
    )
    rate_requests: int = Field(default=200, ge=0, description="Other requests a second of one key. 0: no limit.")
    max_open_sessions: int = Field(
        default=1_000_000,
        ge=0,
        description="Sessions of a bot that may be open; an entry that would open one more gets 429. 0: no limit.",
    )
    session_max_entries: int = Field(
        default=SessionQuota().max_entries,
        ge=0,
        description="Entries of a session; the entry after them closes it as max_size and opens the next one. 0: no limit.",
    )
    session_max_bytes: int = Field(
        default=SessionQuota().max_bytes,
        ge=0,
        description="Bytes of a session's entries as JSON; an entry beyond them closes it as max_size, too. 0: no limit.",
    )
    max_endpoints: int = Field(default=20, ge=0, description="Endpoints of a bot; no more are created. 0: no limit.")
    max_bots: int = Field(default=1000, ge=1, description="Bots that are not deleted; no more are created.")
    max_keys: int = Field(default=10_000, ge=1, description="Keys that are not revoked; no more are created.")

    # Connections of clients
    max_connections: int = Field(
        default=2000, ge=10, description="Connections of clients that one API process has at most, with room for probes beside."
    )
    request_head_timeout_s: float = Field(
        default=10.0, gt=0, description="Longest time for a request's line and headers to arrive, in seconds."
    )
    request_body_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest time for a request's body to arrive, in seconds."
    )
    reply_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest time in which a client reads 64 KB of a reply that waits for it, in seconds."
    )

    # Keys
    adjourn_admin_key: str | None = Field(
        default=None,
        repr=False,
        pattern=ADMIN_KEY_PATTERN,
        description="Key with all scopes that exists from the first start on: adj_ and at least 43 letters and digits.",
    )
    adjourn_admin_key_file: Path | None = Field(default=None, description="File with that key, for mounted secrets.")
    config_max_age_s: float = Field(
        default=60.0,
        ge=5,
        description="Time without news of bots and keys after which every request is refused, in seconds; admin routes after 5.",
    )

    # Closing and archive
    tick_ms: int = Field(default=250, ge=10, description="Interval of the worker's jobs, in milliseconds.")
    shard_lease_ms: int = Field(
        default=5000,
        ge=100,
        description="Time without a heartbeat after which other workers sweep a worker's shards, in milliseconds.",
    )
    sweep_batch: int = Field(default=500, ge=1, description="Due conversations read at once from one shard.")
    archive_batch: int = Field(default=2000, ge=1, description="Closed sessions written in one transaction.")
    archive_claim_idle_ms: int = Field(
        default=10_000,
        ge=100,
        description="Idle time after which other workers claim a worker's unarchived events, in milliseconds.",
    )
    reject_limit_percent: int = Field(
        default=5,
        ge=0,
        le=100,
        description="Rejects among the last 1,000 records above which the archivist stops; 10 always may be. 100: no limit.",
    )
    database_pool_size: int = Field(default=5, ge=1, description="Postgres connections that one process keeps.")
    database_timeout_s: float = Field(default=10.0, gt=0, description="Longest wait for one statement, in seconds.")

    # Delivery
    secrets_key: str | None = Field(
        default=None,
        repr=False,
        description="Keys that encrypt the secrets of endpoints, comma-separated, the first encrypts. Unset: the file's.",
    )
    secrets_key_file: Path | None = Field(
        default=None,
        description="File with these keys. Unset: VAR_DIR/secrets.key, made at the first start, if Postgres is embedded.",
    )
    webhook_allow_private: PrivateAddresses | None = Field(
        default=None,
        description="Private addresses that webhooks may go to: true, false or loopback. Unset: loopback if embedded.",
    )
    delivery_concurrency: int = Field(
        default=50, ge=1, description="Webhooks that one worker has in flight to endpoints that are new, slow or failing."
    )
    delivery_lent_concurrency: int = Field(
        default=120,
        ge=0,
        description="Webhooks in flight to endpoints that answer within a second, lent beside DELIVERY_CONCURRENCY.",
    )
    delivery_timeout_s: float = Field(
        default=15.0, gt=0, description="Longest time for one webhook, from the DNS look-up to the last byte, in seconds."
    )
    delivery_lease_margin_ms: int = Field(
        default=15_000,
        ge=1_000,
        description="Margin of a delivery's lease after DELIVERY_TIMEOUT_S, in milliseconds; then another worker may send it.",
    )
    delivery_reply_max_bytes: int = Field(default=65_536, ge=0, description="Bytes read of a webhook's reply.")

    # Process
    process_name: str = Field(default="", description="Name in this process's log lines; `adjourn serve` sets it.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least severe level logged.")
    log_format: Literal["console", "json"] = Field(default="console", description="Format of log lines.")
    access_log: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Part of all requests that are logged, 0 to 1, and all answers from 500 on. true is 1; false is 0: none.",
    )
    drain_delay_s: float = Field(
        default=0.0, ge=0, description="Time between /readyz failing and the listener closing at a stop, in seconds."
    )
    shutdown_grace_s: float = Field(
        default=10.0, gt=0, description="Longest wait at a stop for requests and jobs in flight, in seconds."
    )
    prometheus_multiproc_dir: Path | None = Field(
        default=None, description="Folder where processes share their metrics; `adjourn serve` sets a fresh one."
    )

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = _url_parts(url)
        if parts.scheme in SENTINEL_SCHEMES:
            if not re.fullmatch(r"/[^/]+(/\d+)?", parts.path):
                msg = "must end in the name of the service, and may in the number of a database: redis+sentinel://host1,host2/service/0"
                raise ValueError(msg)
            return url
        if parts.scheme not in _REDIS_SCHEMES:
            msg = "must start with redis://, rediss://, unix:// or redis+sentinel://"
            raise ValueError(msg)
        if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
            msg = "must end in the number of a database, such as /0"
            raise ValueError(msg)
        return url

    @field_validator("database_url", "database_read_url")
    @classmethod
    def _normalise_database_url(cls, url: str | None) -> str | None:
        return None if url is None else normalised_database_url(url)

    @field_validator("secrets_key")
    @classmethod
    def _check_secrets_key(cls, keys: str | None) -> str | None:
        _keys_in(keys or "")
        return keys

    @field_validator("secrets_key_file")
    @classmethod
    def _check_secrets_key_file(cls, file: Path | None) -> Path | None:
        _keys_in(text_of_file(file) or "")
        return file

    @field_validator("adjourn_admin_key_file")
    @classmethod
    def _check_admin_key_file(cls, file: Path | None) -> Path | None:
        key = text_of_file(file)
        if key is not None and not re.fullmatch(ADMIN_KEY_PATTERN, key):
            msg = "the file must hold adj_ and at least 43 letters and digits, and nothing else"
            raise ValueError(msg)
        return file

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            msg = "TLS_CERT_FILE and TLS_KEY_FILE belong together: set both, or neither"
            raise ValueError(msg)
        return self

    @field_validator("access_log", mode="before")
    @classmethod
    def _accept_yes_or_no(cls, share: object) -> object:
        return {"true": 1.0, "false": 0.0}.get(share.lower(), share) if isinstance(share, str) else share

    @field_validator("log_level", mode="before")
    @classmethod
    def _accept_lower_case_level(cls, level: object) -> object:
        return level.upper() if isinstance(level, str) else level

    @classmethod
    def load(cls, **chosen: Any) -> Self:  # noqa: ANN401 - each is checked as the setting that it is
        """Read the environment and, below it, the file `.env` of the working directory; `chosen` goes before both."""
        return cls(_env_file=ENV_FILE, **chosen)  # type: ignore[call-arg]  # an argument of BaseSettings that its type hides

    @property
    def secret_keys(self) -> list[str]:
        """The keys of `secrets_key`, or of its file; none if neither is set."""
        return _keys_in(self.secrets_key or text_of_file(self.secrets_key_file) or "")

    @property
    def admin_key(self) -> str | None:
        """`adjourn_admin_key`, or the content of its file."""
        return self.adjourn_admin_key or text_of_file(self.adjourn_admin_key_file)

    @property
    def chosen(self) -> dict[str, object]:
        """The settings that differ from their defaults, for the log; of one that may be secret only that it is set."""
        fields = type(self).model_fields
        changed = {name: getattr(self, name) for name in fields if getattr(self, name) != fields[name].default}
        return {name: value if fields[name].repr else "set" for name, value in changed.items()}

    @property
    def embedded(self) -> bool:
        """Whether both servers are embedded: a local installation and not a deployment."""
        return self.redis_url is None and self.database_url is None

    @property
    def allowed_origins(self) -> list[str]:
        """The origins of `cors_origins`."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

    @property
    def private_webhooks_allowed(self) -> PrivateAddresses:
        """Private addresses that a webhook may go to. A local installation's receivers are on its own machine."""
        if self.webhook_allow_private is not None:
            return self.webhook_allow_private
        return "loopback" if self.embedded else False


def text_of_file(file: Path | None) -> str | None:
    """The content of a file that holds one secret, without the white space around it. Raises `ValueError`."""
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} cannot be read: {error}"
        raise ValueError(msg) from None


def _keys_in(listed: str) -> list[str]:
    """Keys between commas or white space. Raises `ValueError` for a text that is no key, without quoting it."""
    keys = listed.replace(",", " ").split()
    if not all(re.fullmatch(r"[A-Za-z0-9_-]{43}=", key) for key in keys):
        msg = "must be keys that `adjourn secrets new-key` makes, with commas between them"
        raise ValueError(msg)
    return keys


def normalised_database_url(url: str) -> str:
    """Any common form of a Postgres URL as SQLAlchemy's for asyncpg.

    `postgres://` and `postgresql://` are accepted, several hosts with commas between them, and libpq's `sslmode` as `ssl`.
    """
    parts = _url_parts(url)
    if parts.scheme not in ("postgres", "postgresql", _ASYNCPG):
        msg = "must start with postgresql://"
        raise ValueError(msg)
    query = urlencode([("ssl" if name == "sslmode" else name, value) for name, value in parse_qsl(parts.query)], safe="/")
    # urlunsplit would drop the empty authority of `scheme:///database`.
    return f"{_ASYNCPG}://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")


def _url_parts(url: str) -> SplitResult:
    """Split a URL. The errors quote none of it, since the wrong part may be a piece of a password."""
    try:
        parts = urlsplit(url)
        for address in parts.netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{address}").port  # parsed when it is read
    except ValueError:
        msg = "has an impossible host or port (1 to 65535); write special characters of a password as %XX"
        raise ValueError(msg) from None
    return parts


def armed_failpoint() -> str:
    """`ADJOURN_FAILPOINT`, by which fault tests make a process kill itself; not a setting of a deployment."""
    return os.environ.get("ADJOURN_FAILPOINT", "")


def environment_with(**settings: object) -> dict[str, str]:
    """This process's environment for a child, with settings changed; `None` unsets one."""
    environment = dict(os.environ)
    for name, value in settings.items():
        environment.pop(name.upper(), None)
        if value is not None:
            environment[name.upper()] = str(value)
    return environment


def replace_environment(environment: Mapping[str, str]) -> None:
    """Have this process, and what it starts, the environment of another one: a fork is a process with settings of its own."""
    os.environ.clear()
    os.environ.update(environment)
