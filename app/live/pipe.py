"""One connection to Redis on which many commands are in flight at once.

An await of a redis-py command costs 60 µs of CPU; here a call is a write, and one reader task delivers the replies in order.
It never retries: a call whose reply is lost raises `RedisUnreachable`, and may have been executed.
"""

import asyncio
import contextlib
import math
from asyncio import Future, StreamWriter
from collections import deque
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from app.errors import Unavailable
from app.failpoints import failpoint

RedisReply = Any
Argument = str | bytes | int


class RedisUnreachable(Unavailable):
    """Redis does not answer: every other call would fail the same way."""


class Pipe:
    """Commands go out in the order of `call`. The connection is opened at the first call, and again after a failure."""

    def __init__(self, redis: Redis, *, timeout_s: float) -> None:
        self._pool = redis.connection_pool
        self._timeout_s = timeout_s
        self._connection: AbstractConnection | None = None
        self._connecting = asyncio.Lock()
        self._waiting: deque[Future[RedisReply]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._outgoing: list[bytes] = []

    async def call(self, *args: Argument) -> RedisReply:
        """Send one command and return its reply.

        Raises `ResponseError` for an error that Redis answers, `RedisUnreachable` if no answer came within the timeout.
        """
        (reply,) = await self.call_all([args])
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    async def call_all(self, commands: Sequence[tuple[Argument, ...]]) -> list[RedisReply]:
        """Send several commands together and return their replies; an error that Redis answers is returned, not raised."""
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = connection or await self._connect()
                return [await future for future in self._send(connection, commands)]
        except TimeoutError as error:
            # Later replies would be delivered to the wrong callers: drop the connection.
            if connection is not None and connection is self._connection:
                await self._drop(_too_late(error))
            raise _too_late(error) from error
        except (RedisError, OSError) as error:
            raise RedisUnreachable("Redis cannot be reached", retry_after_s=1) from error

    def _send(self, connection: AbstractConnection, commands: Sequence[tuple[Argument, ...]]) -> list[Future[RedisReply]]:
        writer = connection._writer  # noqa: SLF001 - redis-py's own send waits for the socket with every command
        if writer is None or writer.is_closing():  # the server closed it, and the reader has not noticed yet
            raise ConnectionError("the connection was closed")
        loop = asyncio.get_running_loop()
        futures: list[Future[RedisReply]] = [loop.create_future() for _ in commands]
        if not self._outgoing:
            loop.call_soon(self._flush, connection, writer)
        # redis-py packs in Python, at five times the cost; hiredis's stub knows tuples of one item only.
        self._outgoing.extend([pack_command(command) for command in commands])  # type: ignore[arg-type]
        self._waiting.extend(futures)
        return futures

    def _flush(self, connection: AbstractConnection, writer: StreamWriter) -> None:
        """Write the commands of all callers in one iteration of the event loop at once: each write is a system call."""
        if connection is not self._connection or writer.is_closing():
            return  # dropped, or about to be; later commands go out on the next connection
        outgoing, self._outgoing = self._outgoing, []
        # uvloop raises where the server closed the connection just now: then the reader fails all waiting calls.
        with contextlib.suppress(RuntimeError):
            writer.write(b"".join(outgoing))

    async def _connect(self) -> AbstractConnection:
        async with self._connecting:
            if self._connection is not None:
                return self._connection
            connection: AbstractConnection = self._pool.make_connection()
            await connection.connect()
            self._connection = connection
            self._reader = asyncio.create_task(self._read(connection), name="redis pipe")
            return connection

    async def _read(self, connection: AbstractConnection) -> None:
        try:
            while True:
                try:
                    reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
                except ResponseError as error:
                    self._deliver(error)
                else:
                    self._deliver(reply)
                self._deliver_read(connection)
        except (RedisError, OSError) as error:
            if self._connection is connection:
                await self._drop(error)

    def _deliver_read(self, connection: AbstractConnection) -> None:
        """Deliver the replies that came with the last one: an await of redis-py for each costs ten times as much."""
        parser: Any = connection._parser  # noqa: SLF001 - redis-py has no way to take what it has read
        reader = parser._reader  # noqa: SLF001
        while reader is not None and (reply := reader.gets(False)) is not NOT_ENOUGH_DATA:  # noqa: FBT003 - hiredis's own
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply
            self._deliver(reply)

    def _deliver(self, reply: RedisReply) -> None:
        failpoint("redis.after_execution")
        future = self._waiting.popleft()
        if not future.done():
            future.set_result(reply)

    async def _drop(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        reader, self._reader = self._reader, None
        waiting, self._waiting = self._waiting, deque()
        self._outgoing = []
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # a caller that timed out never reads it: no unhandled error
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def stop(self) -> None:
        await self._drop(RedisUnreachable("shutting down", retry_after_s=1))
        await asyncio.sleep(0)  # a transport is freed one iteration of the loop after it was closed


def _too_late(cause: TimeoutError) -> RedisUnreachable:
    """The cause goes to every caller, also to one that waited less: a retry after a timeout would take as long again."""
    error = RedisUnreachable("Redis did not answer in time", retry_after_s=1)
    error.__cause__ = cause
    return error
