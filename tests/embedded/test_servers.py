"""The embedded servers keep their data, refuse a second user, and come back from every kind of end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from app.embedded import Servers, embedded_servers
from app.embedded import postgres_server as postgres_module
from app.embedded.postgres_server import PostgresServer
from app.errors import CannotStart

PARENT = """
import sys, time
from pathlib import Path
from app.embedded import embedded_servers
with embedded_servers(Path(sys.argv[1]), redis=True, postgres=True, durable=False) as servers:
    print(servers.redis_pid, servers.postgres_pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def var_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        yield Path(folder)


def _write(servers: Servers) -> None:
    assert servers.redis_url is not None
    assert servers.postgres is not None

    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("kept", "yes")
    asyncio.run(_execute(servers.postgres, "CREATE TABLE kept AS SELECT 'yes'::text AS word"))


def _read(servers: Servers) -> tuple[bytes | None, str]:
    assert servers.redis_url is not None
    assert servers.postgres is not None

    with redis.Redis.from_url(servers.redis_url) as client:
        word = client.get("kept")
    return word, asyncio.run(_value(servers.postgres, "SELECT word FROM kept"))


async def _with_connection(postgres: PostgresServer, use: Callable[[asyncpg.Connection], Awaitable[object]]) -> object:
    connection = await asyncpg.connect(user="postgres", database="adjourn", host=str(postgres.sockets))
    try:
        return await use(connection)
    finally:
        await connection.close()


async def _execute(postgres: PostgresServer, statement: str) -> None:
    await _with_connection(postgres, lambda connection: connection.execute(statement))


async def _value(postgres: PostgresServer, query: str) -> str:
    return str(await _with_connection(postgres, lambda connection: connection.fetchval(query)))


def _poll(met: Callable[[], bool], *, within_s: float = 20) -> bool:
    for _ in range(int(within_s / 0.02)):
        if met():
            return True
        time.sleep(0.02)
    return met()


def _ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def parent(var_dir: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Another process that runs both servers on `var_dir`, and their pids."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(var_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None

    try:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
    finally:
        process.communicate()  # its input ends, and so does its block


def test_a_clean_stop_keeps_the_data(var_dir: Path) -> None:
    """Data written before a stop is there after the next start."""
    with embedded_servers(var_dir, redis=True, postgres=True) as servers:
        _write(servers)
        pids = [servers.redis_pid, servers.postgres_pid]
    with embedded_servers(var_dir, redis=True, postgres=True) as servers:
        found = _read(servers)

    assert found == (b"yes", "yes")
    assert all(pid is not None and _ended(pid) for pid in pids)


def test_a_crash_of_either_server_keeps_the_data(var_dir: Path) -> None:
    """Each is killed with SIGKILL and started again on the same URL; nothing acknowledged is lost."""
    with embedded_servers(var_dir, redis=True, postgres=True) as servers:
        assert servers.redis is not None
        assert servers.postgres is not None

        _write(servers)
        for server in (servers.redis, servers.postgres):
            server.kill()
            assert not server.running
            server.start()
        found = _read(servers)

    assert found == (b"yes", "yes")


def test_a_stopped_process_can_still_be_stopped(var_dir: Path) -> None:
    """A server frozen by SIGSTOP is woken in order to end; the block does not hang."""
    with embedded_servers(var_dir, redis=True, postgres=False) as servers:
        assert servers.redis_pid is not None
        os.kill(pid := servers.redis_pid, signal.SIGSTOP)

    assert _ended(pid)


def test_only_what_is_asked_for_is_started(var_dir: Path) -> None:
    """With one URL set, only the other server is ours."""
    with embedded_servers(var_dir, redis=True, postgres=False) as servers:
        assert servers.postgres is None
        assert servers.database_url is None

    assert not (var_dir / "postgres").exists()


def test_the_servers_are_durable_and_closed_to_the_network(var_dir: Path) -> None:
    """Every write is flushed, nothing is evicted, no port is open, and the sockets are this user's alone."""
    with embedded_servers(var_dir, redis=True, postgres=True) as servers:
        assert servers.redis_url is not None
        assert servers.postgres is not None
        with redis.Redis.from_url(servers.redis_url) as client:
            settings = [client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy", "port")]
        pids = (servers.redis_pid, servers.postgres_pid)
        ports = [
            listening
            for pid in pids
            for process in (psutil.Process(pid), *psutil.Process(pid).children())
            for listening in process.net_connections("inet")
        ]
        fsync = asyncio.run(_value(servers.postgres, "SHOW fsync"))
        folder_mode = servers.postgres.sockets.stat().st_mode & 0o777

    assert settings == ["yes", "always", "noeviction", "0"]
    assert ports == []
    assert (fsync, folder_mode) == ("on", 0o700)


def test_a_second_user_of_the_folder_is_refused(var_dir: Path, parent: tuple[subprocess.Popen[str], list[int]]) -> None:
    """The error names the process that has the folder, and that one's servers go on."""
    holder, pids = parent

    with (
        pytest.raises(CannotStart, match=rf"in use by process {holder.pid}"),
        embedded_servers(var_dir, redis=True, postgres=True),
    ):
        pytest.fail("two users of one folder")
    assert not any(_ended(pid) for pid in pids)


def test_killing_the_parent_ends_the_servers_and_the_next_start_works(
    var_dir: Path, parent: tuple[subprocess.Popen[str], list[int]]
) -> None:
    """SIGKILL leaves lock, sockets and pid files behind; none of them stops the next start, at once."""
    process, pids = parent
    process.kill()
    process.wait()
    with embedded_servers(var_dir, redis=True, postgres=True, durable=False) as servers:
        _write(servers)
        found = _read(servers)

    assert found == (b"yes", "yes")
    assert _poll(lambda: all(_ended(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends them")
def test_no_server_outlives_its_killed_parent(parent: tuple[subprocess.Popen[str], list[int]]) -> None:
    """They end by themselves, without another start."""
    process, pids = parent
    process.kill()
    process.wait()

    assert _poll(lambda: all(_ended(pid) for pid in pids))


def test_a_server_left_at_work_is_ended_by_the_next_start(var_dir: Path) -> None:
    """Where the kernel does not end them, the next start finds strays by the folder that they work in."""
    with embedded_servers(var_dir, redis=True, postgres=True, durable=False) as servers:
        _write(servers)
        for server in (servers.redis, servers.postgres):
            assert server is not None
            stray = server._process
            server._process = None  # forgotten, but running: as after the death of a parent
            server.start()
            assert stray is not None
            assert stray.wait(timeout=1) == 0
        found = _read(servers)

    assert found == (b"yes", "yes")


def test_a_pid_file_that_names_another_process_is_no_obstacle(var_dir: Path) -> None:
    """After a reboot a left-over pid may be anyone's; it is neither believed nor killed."""
    with embedded_servers(var_dir, redis=False, postgres=True, durable=False):
        pid_file = var_dir / "postgres" / "postmaster.pid"
        text = pid_file.read_text()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid_file.write_text(text.replace(text.split()[0], str(bystander.pid), 1))
    try:
        with embedded_servers(var_dir, redis=False, postgres=True, durable=False) as servers:
            assert servers.postgres_pid is not None
        assert bystander.poll() is None
    finally:
        bystander.communicate()


def test_half_a_data_folder_is_never_used(var_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first start that is cut off leaves a folder of another name, and the next one begins anew."""
    with monkeypatch.context() as broken:
        broken.setattr(postgres_module, "DATABASE", "template1")
        with (
            pytest.raises(CannotStart, match="already exists"),
            embedded_servers(var_dir, redis=False, postgres=True, durable=False),
        ):
            pytest.fail("started on half a folder")
    left = sorted(path.name for path in var_dir.glob("postgres*"))
    with embedded_servers(var_dir, redis=False, postgres=True, durable=False) as servers:
        assert servers.postgres_pid is not None

    assert left == ["postgres.new"]


def test_a_long_path_gets_its_sockets_elsewhere(var_dir: Path) -> None:
    """A Unix socket's path holds 108 bytes; a deep folder works all the same, and twice in the same place."""
    deep = var_dir / ("d" * 60) / ("e" * 60)
    folders = set()
    for _ in range(2):
        with embedded_servers(deep, redis=True, postgres=True, durable=False) as servers:
            assert servers.postgres is not None
            assert asyncio.run(_value(servers.postgres, "SELECT 1")) == "1"
            folders.add(servers.postgres.sockets)

    assert len(folders) == 1
    assert (elsewhere := folders.pop()).parent == Path(tempfile.gettempdir())
    assert not elsewhere.exists()


def test_data_of_another_version_is_named(var_dir: Path) -> None:
    """A folder that an older Postgres wrote is left alone, with words that say so."""
    with embedded_servers(var_dir, redis=False, postgres=True, durable=False):
        pass
    (var_dir / "postgres" / "PG_VERSION").write_text("16\n")

    with (
        pytest.raises(CannotStart, match="written by Postgres 16"),
        embedded_servers(var_dir, redis=False, postgres=True, durable=False),
    ):
        pytest.fail("started on foreign data")


def test_a_server_that_cannot_start_says_why(var_dir: Path) -> None:
    """The last line of its log stands in the error, and nothing is left running."""
    (var_dir / "redis").mkdir()
    (var_dir / "redis" / "appendonly.aof").write_text("not a log of commands")

    with (
        pytest.raises(CannotStart, match=r"Redis did not start: .*check-aof"),
        embedded_servers(var_dir, redis=True, postgres=True, durable=False),
    ):
        pytest.fail("started on a broken file")
