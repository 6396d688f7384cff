"""Loads and runs the Lua scripts of the product, each a `.lua` file beside the module that calls it.

Redis knows a script by its digest; the source is sent where Redis does not have it yet. The module refuses to know what a script
does: its file documents purpose, KEYS, ARGV and reply.
"""

from collections.abc import Sequence
from hashlib import sha1
from importlib import resources

from msgspec import Struct
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from app.errors import Unavailable
from app.live.pipe import Argument, Pipe, RedisReply

# Redis 7 and newer read a script's flags off its first line, which is a syntax error to an older one.
_WHEN_FULL = b"#!lua flags=allow-oom\n"


class RedisFull(Unavailable):
    """Redis has no memory left. Commands that free memory, and reads, go on."""


class _Source(Struct, frozen=True):
    text: bytes
    digest: str


def read_source(package: str, name: str) -> bytes:
    """The text of the script `name`, a file of `package`."""
    return resources.files(package).joinpath(name).read_bytes()


class LuaScript:
    """One script.

    `when_full`: it also runs when Redis is full. On Redis 6.2 that takes a first write which cannot enlarge memory: that version
    asks of a script's first write whether it can, and of none after it. With the flag of newer versions that write is idle.
    """

    def __init__(self, source: bytes, *, when_full: bool = False) -> None:
        self._plain = _source(source)
        self._source = _source(_WHEN_FULL + source) if when_full else self._plain

    async def call(self, pipe: Pipe, names: Sequence[str], *args: Argument) -> RedisReply:
        """Run it on keys and arguments. Raises `ResponseError`, `RedisFull`, `RedisUnreachable`."""
        source = self._source
        try:
            return await _evaluate(pipe, source, names, args)
        except ResponseError as error:
            if isinstance(error, OutOfMemoryError) or "OOM" in str(error):  # Redis 6.2 wraps it in an error of the script
                raise RedisFull("Redis is full", retry_after_s=5) from error
            if source is self._plain or "compiling" not in str(error):
                raise
        self._source = self._plain
        return await self.call(pipe, names, *args)

    def command(self, names: Sequence[str], *args: Argument) -> tuple[Argument, ...]:
        """The script as one command among several that go out together (`Pipe.call_all`); it sends the whole source."""
        return ("EVAL", self._plain.text, len(names), *names, *args)


def _source(text: bytes) -> _Source:
    return _Source(text, sha1(text, usedforsecurity=False).hexdigest())


async def _evaluate(pipe: Pipe, source: _Source, names: Sequence[str], args: Sequence[Argument]) -> RedisReply:
    try:
        return await pipe.call("EVALSHA", source.digest, len(names), *names, *args)
    except NoScriptError:
        return await pipe.call("EVAL", source.text, len(names), *names, *args)
