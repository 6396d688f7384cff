"""Each form of a URL of Postgres reaches a real server: several hosts, checked certificates, pgbouncer, a replica for queries."""

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.archive.engine import connect_args, make_engine
from app.embedded import Servers
from app.settings import Settings

CERTIFICATE = Path(__file__).parents[1] / "delivery" / "self_signed.pem"
PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
_SSL_REQUEST = (80877103).to_bytes(4, "big")


@asynccontextmanager
async def front(servers: Servers, *, host: str = "127.0.0.1", tls: bool = False) -> AsyncIterator[int]:
    """A TCP port of the run's Postgres, which itself has a Unix socket alone; with a certificate for 127.0.0.1 if `tls`."""
    assert servers.postgres is not None
    path = servers.postgres.socket_path
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
        target.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, to_server = await asyncio.open_unix_connection(str(path))
        try:
            first = await reader.readexactly(8)
            if first[4:] == _SSL_REQUEST:
                writer.write(b"S" if tls else b"N")
                if tls:
                    await writer.start_tls(context)
            else:
                to_server.write(first)
            await asyncio.gather(pump(reader, to_server), pump(inner, writer))
        except (OSError, EOFError):
            writer.close()
        finally:
            to_server.close()

    async with await asyncio.start_server(serve, host, 0) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def pgbouncer(port: int, folder: Path, *, pool: int) -> AsyncIterator[int]:
    """A pgbouncer in transaction mode before a port, with few connections to the server."""
    assert PGBOUNCER is not None
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        own = free.getsockname()[1]
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {own}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {pool}\nuser = nobody\nlogfile = /dev/null\n"
    )
    process = await asyncio.create_subprocess_exec(PGBOUNCER, "-q", str(config))
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", own))[1].close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        yield own
    finally:
        process.terminate()
        await process.wait()


async def database_of(url: str) -> str:
    """Connect as the product does, and ask a question."""
    engine = make_engine(url)
    try:
        async with engine.connect() as conn:
            return str(await conn.scalar(text("SELECT current_database() || ' ' || current_setting('application_name')")))
    finally:
        await engine.dispose()


@pytest.mark.parametrize(
    ("url", "dsn"),
    (
        ("postgresql://u:p%40@h:5433/d", "postgresql://u:p%40@h:5433/d"),
        ("postgresql://u@h/d?sslmode=verify-full&sslrootcert=/a/b", "postgresql://u@h/d?sslrootcert=/a/b&sslmode=verify-full"),
        ("postgresql://u@a:1,b:2/d", "postgresql://u@a:1,b:2/d?target_session_attrs=read-write"),
        ("postgresql://u@a,b/d?target_session_attrs=any", "postgresql://u@a,b/d?target_session_attrs=any"),
        ("postgresql://u@h/d?channel_binding=prefer&keepalives=1&connect_timeout=9", "postgresql://u@h/d"),
    ),
)
def test_a_url_reaches_the_driver_as_libpq_reads_it(url: str, dsn: str) -> None:
    """Nothing of it is lost but what says how libpq keeps a connection."""
    arguments = connect_args(Settings(database_url=url).database_url or "", statement_timeout_s=1, name="x")

    assert arguments["dsn"] == dsn
    assert arguments["timeout"] == (9 if "connect_timeout" in url else 5)


async def test_the_host_that_answers_is_used(servers: Servers, database_url: str) -> None:
    """The first host of the URL refuses connections."""
    name = urlsplit(database_url).path
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        closed = free.getsockname()[1]
    async with front(servers) as port:
        url = f"postgresql://postgres@127.0.0.1:{closed},127.0.0.1:{port}{name}"

        assert await database_of(url) == f"{name[1:]} adjourn"


@pytest.mark.parametrize(("host", "mode", "accepted"), (
    ("127.0.0.1", "verify-full", True), ("127.0.0.2", "verify-full", False), ("127.0.0.2", "verify-ca", True),
))  # fmt: skip
async def test_a_certificate_is_checked(servers: Servers, database_url: str, host: str, mode: str, *, accepted: bool) -> None:
    """`verify-full` refuses a certificate of another name."""
    name = urlsplit(database_url).path
    async with front(servers, host=host, tls=True) as port:
        url = f"postgresql://postgres@{host}:{port}{name}?sslmode={mode}&sslrootcert={CERTIFICATE}"
        if accepted:
            assert await database_of(url) == f"{name[1:]} adjourn"
        else:
            with pytest.raises((ssl.SSLCertVerificationError, DBAPIError)):
                await database_of(url)


@pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed: apt-get install pgbouncer")
async def test_transactions_share_few_connections_through_pgbouncer(servers: Servers, database_url: str, tmp_path: Path) -> None:
    """Two connections serve ten clients, which prepare the same statements and meet another connection at each transaction."""
    name = urlsplit(database_url).path
    async with front(servers) as port, pgbouncer(port, tmp_path, pool=2) as own:
        engine = make_engine(f"postgresql://postgres@127.0.0.1:{own}{name}?pgbouncer=true", pool_size=10)
        statement = text("SELECT CAST(:value AS jsonb), pg_backend_pid() FROM pg_sleep(0.002)")

        clients = asyncio.Semaphore(10)  # as many as the engine has connections, so that none waits for one

        async def ask(number: int) -> tuple[Any, int]:
            async with clients, engine.begin() as conn:
                row = (await conn.execute(statement, {"value": f'{{"n": {number}}}'})).one()
                again = (await conn.execute(statement, {"value": "[]"})).one()
                assert row[1] == again[1]
                return row[0], row[1]

        found = await asyncio.gather(*map(ask, range(200)))
        await engine.dispose()

    assert [value for value, _ in found] == [{"n": number} for number in range(200)]
    assert len({pid for _, pid in found}) == 2
