"""A failover by a real sentinel is followed by all connections, the pipelined one included."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from app.embedded.redis_server import server_binary
from app.live.pipe import Pipe, RedisUnreachable
from app.live.server import open_redis
from app.settings import Settings


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        return int(free.getsockname()[1])


@asynccontextmanager
async def server(folder: Path, port: int, *options: str, sentinel: str = "") -> AsyncIterator[asyncio.subprocess.Process]:
    """A server, or a sentinel of this configuration, on a port; it is killed at the end."""
    config = folder / f"{port}.conf"
    config.write_text(f'port {port}\nbind 127.0.0.1\nsave ""\nappendonly no\n' if not sentinel else f"port {port}\n{sentinel}")
    more = ("--sentinel",) if sentinel else options
    process = await asyncio.create_subprocess_exec(
        server_binary(), str(config), *more, stdout=asyncio.subprocess.DEVNULL, cwd=folder
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    await asyncio.sleep(0.02)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(call: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - a reply
    """The reply of a call once it gives one that is true; errors of a server that is unreachable are expected meanwhile."""
    async with asyncio.timeout(30):
        while True:
            try:
                if reply := await call():
                    return reply
            except (RedisError, RedisUnreachable):
                pass
            await asyncio.sleep(0.05)


@pytest.mark.timeout(60)
async def test_a_failover_is_followed(tmp_path: Path) -> None:
    """The primary is killed; the replica takes its place, with what was written, and the same client writes to it."""
    first, second, asked, unused = (free_port() for _ in range(4))
    watch = (
        f"sentinel monitor main 127.0.0.1 {first} 1\nsentinel down-after-milliseconds main 300\n"
        "sentinel failover-timeout main 3000\n"
    )
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(server(tmp_path, first))
        await stack.enter_async_context(
            server(tmp_path, second, "--replicaof", "127.0.0.1", str(first), "--repl-diskless-sync-delay", "0")
        )
        redis = await stack.enter_async_context(
            open_redis(f"redis+sentinel://127.0.0.1:{unused},127.0.0.1:{asked}/main/0", timeout_s=1)
        )
        await stack.enter_async_context(server(tmp_path, asked, sentinel=watch))
        pipe = Pipe(redis, timeout_s=1)
        stack.push_async_callback(pipe.stop)
        sentinel = await stack.enter_async_context(open_redis(f"redis://127.0.0.1:{asked}", timeout_s=1))
        await until(lambda: sentinel.execute_command("SENTINEL", "REPLICAS", "main"))
        await pipe.call("SET", "before", "1")
        await until(lambda: pipe.call("WAIT", 1, 500))

        primary.kill()
        await until(lambda: pipe.call("SET", "after", "1"))
        found = await until(lambda: redis.mget("before", "after"))
        port = int((await pipe.call("CONFIG", "GET", "port"))[1])

    assert found == [b"1", b"1"]
    assert port == second


@pytest.mark.parametrize(
    "url", ("redis+sentinel://h", "redis+sentinel://h/", "redis+sentinel://h:99999/main", "redis+sentinel://h/main/x")
)
def test_a_url_without_a_service_is_refused(url: str) -> None:
    """The sentinels may watch several."""
    with pytest.raises(ValueError, match=r"service|port"):
        Settings(redis_url=url)
