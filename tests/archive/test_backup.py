"""The commands of docs/operations.md copy both servers while they run, and give back what was acknowledged before the copy."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.domain.entry import Entry
from app.domain.records import Close, Command, Receive
from app.domain.strand import Strand
from app.embedded import Servers, embedded_servers
from app.embedded.postgres_server import bin_dir
from app.live.fold import CommandOutcome
from app.resources import Resources, open_resources
from app.settings import Settings
from app.worker import Worker
from tests.tooling.tree import DOCS

# The wheel has no command line client.
_CLIENT = """#!{python}
import sys
from redis import Redis
reply = Redis.from_url(sys.argv[2]).execute_command(*sys.argv[3:])
print("\\n".join(f"{{name}}:{{value}}" for name, value in reply.items()) if isinstance(reply, dict) else reply)
"""


def commands(name: str) -> str:
    found = re.search(rf"^```bash {name}\n(.*?)^```", (DOCS / "operations.md").read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def play(name: str, programs: Path, **variables: str | Path) -> None:
    """Run the commands of a block of the document."""
    path = os.pathsep.join((str(programs), str(bin_dir()), os.environ["PATH"]))
    environment = os.environ | {"PATH": path} | {key: str(value) for key, value in variables.items()}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(name)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, which has room for the name of a socket."""
    made = Path(tempfile.mkdtemp(prefix="adj-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.usefixtures("redis_url")
async def test_a_restore_gives_back_what_was_acknowledged_before_the_backup(
    servers: Servers, database_url: str, folder: Path, tmp_path: Path
) -> None:
    """One session is archived, one open, and one waits for the archivist; what comes after the copy is lost."""
    assert servers.postgres is not None
    client = tmp_path / "redis-cli"
    client.write_text(_CLIENT.format(python=sys.executable))
    client.chmod(0o755)
    before, after, backup = folder / "a", folder / "b", folder / "backup"
    backup.mkdir()

    async def submit(resources: Resources, user: str, command: Command) -> CommandOutcome:
        return await resources.ledger.submit(Strand("shop", f"web:{user}"), command)

    with embedded_servers(before, redis=True, postgres=False) as running:
        assert running.redis is not None
        async with open_resources(Settings(redis_url=running.redis.url, database_url=database_url, shards=4)) as resources:
            worker = Worker(resources)
            for user in ("archived", "waits", "open"):
                outcome = await submit(resources, user, Receive(Entry(user_id=user, role="user", text="hello"), f"{user}-1"))
                assert outcome.answer is not None
                if user != "open":
                    await submit(resources, user, Close(outcome.answer.session_id or ""))
                if user == "archived":
                    await worker.archivist.run_once()
            play(
                "backup", tmp_path, REDIS_URL=running.redis.url, REDIS_DIR=before / "redis", BACKUP=backup,
                DATABASE_URL=plain(database_url),
            )  # fmt: skip
            await submit(resources, "later", Receive(Entry(user_id="later", role="user", text="hello"), "later-1"))
            await worker.stop()

    name = f"restored_{uuid.uuid4().hex[:12]}"
    connection = await asyncpg.connect(user="postgres", database="postgres", host=str(servers.postgres.sockets))
    await connection.execute(f'CREATE DATABASE "{name}"')
    restored = servers.postgres.url_of(name)
    (after / "redis").mkdir(parents=True, mode=0o700)
    after.chmod(0o700)
    play("restore", tmp_path, REDIS_DIR=after / "redis", BACKUP=backup, DATABASE_URL=plain(restored))
    with embedded_servers(after, redis=True, postgres=False) as running:
        assert running.redis is not None
        async with open_resources(Settings(redis_url=running.redis.url, database_url=restored, shards=4)) as resources:
            worker = Worker(resources)
            await worker.archivist.run_once()
            async with resources.engine.connect() as conn:
                archived = [row.user_id for row in (await conn.exec_driver_sql("SELECT user_id FROM sessions ORDER BY 1")).all()]
            open_ = [user for user in ("open", "later") if await resources.live.sessions_of_user("shop", user)]
            unaccounted = (await worker.consistency.totals()).unaccounted
            await worker.stop()
    await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    await connection.close()

    assert archived == ["archived", "waits"]
    assert open_ == ["open"]
    assert unaccounted == 0


def plain(url: str) -> str:
    """The URL as the programs of Postgres know it."""
    parts = urlsplit(url)
    return f"postgresql://{parts.netloc}{parts.path}?{parts.query}"
