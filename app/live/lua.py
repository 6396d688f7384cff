"""A script that Redis runs: known to it by its digest, sent whole where it does not know it yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1

from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from app.errors import Unavailable
from app.live.pipe import Argument, Pipe, Reply

# Redis 7 and newer read a script's flags off its first line, which is a syntax error to an older one.
_WHEN_FULL = b"#!lua flags=allow-oom\n"


class Full(Unavailable):
    """Redis has no room. What makes room, or cannot take any, goes on."""


@dataclass(frozen=True)
class _Text:
    whole: bytes
    sha: str

    @staticmethod
    def of(whole: bytes) -> "_Text":
        return _Text(whole, sha1(whole, usedforsecurity=False).hexdigest())


class Lua:
    """One script. `when_full`: it goes on when Redis is full, which on one older than 7 takes a first write that frees memory.

    Redis 6.2 asks of a script's first write whether it can enlarge memory, and of none after it. So such a script begins with a
    write that cannot; with the flag of newer ones that write is idle.
    """

    def __init__(self, source: bytes, *, when_full: bool = False) -> None:
        self._plain = _Text.of(source)
        self._text = _Text.of(_WHEN_FULL + source) if when_full else self._plain

    async def call(self, pipe: Pipe, names: Sequence[str], *args: Argument) -> Reply:
        """Run it on keys and arguments. Raises `ResponseError`, `Full`, `Away`."""
        text = self._text
        try:
            return await _evaluate(pipe, text, names, args)
        except ResponseError as error:
            if isinstance(error, OutOfMemoryError) or "OOM" in str(error):  # Redis 6.2 wraps it in an error of the script
                raise Full("Redis is full", retry_after_s=5) from error
            if text is self._plain or "compiling" not in str(error):
                raise
        self._text = self._plain
        return await self.call(pipe, names, *args)


async def _evaluate(pipe: Pipe, text: _Text, names: Sequence[str], args: Sequence[Argument]) -> Reply:
    try:
        return await pipe.call("EVALSHA", text.sha, len(names), *names, *args)
    except NoScriptError:
        return await pipe.call("EVAL", text.whole, len(names), *names, *args)
