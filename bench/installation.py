"""The installation of a measurement: real servers in a temporary folder, a bot, a key; removed at the end of the block."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis.asyncio import Redis

from app.archive.engine import migrate
from app.config.publish import move
from app.config.records import BotRecord, KeyConfig, Mark
from app.delivery.secret_box import new_secrets_key
from app.embedded import Servers, embedded_servers
from app.ids import key_digest, new_key
from app.settings import Settings

BOT = "bench"
SANDBOX = "bench-sandbox"


@contextmanager
def installation() -> Iterator[tuple[Settings, Servers]]:
    """Embedded servers as `adjourn serve` starts them: every write is flushed (`appendfsync always`)."""
    folder = Path(tempfile.mkdtemp(prefix="adj-"))
    try:
        with embedded_servers(folder, redis=True, postgres=True) as servers:
            settings = Settings(
                redis_url=servers.redis_url,
                database_url=servers.database_url,
                var_dir=folder,
                webhook_allow_private=True,
                secrets_key=new_secrets_key(),
            )
            migrate(settings.database_url or "")
            yield settings, servers
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def make_bots(redis_url: str) -> str:
    """A bot in real time and one in a sandbox, known to every process that starts from now on; gives a key for both."""
    key = new_key()
    known = KeyConfig("00000000-0000-7000-8000-000000000000", "bench", frozenset({"ingest", "read", "admin"}), None)
    async with Redis.from_url(redis_url, protocol=2) as redis:
        moved = await move(
            redis,
            stored=None,
            to=Mark("bench", 1),
            bots=[_bot(BOT, sandbox=False), _bot(SANDBOX, sandbox=True)],
            api_keys={key_digest(key): known},
            whole=True,
        )
    assert moved
    return key


def _bot(name: str, *, sandbox: bool) -> BotRecord:
    return BotRecord(
        id=name,
        name=name,
        sandbox=sandbox,
        clock_mode="manual" if sandbox else None,
        deleted=False,
        policy_version=1,
        effective_at_ms=0,
        policy={},
        endpoints=(),
    )
