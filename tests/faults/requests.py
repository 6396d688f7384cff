"""HTTP over one kept connection, without a pool or retries, so that every failure is visible."""

import asyncio
from typing import Any, Self

import msgspec
from msgspec import Struct

LIMIT_S = 20.0  # far above the promise of 2 s, which scenarios check by themselves: the machine may be busy


class Answered(Struct, frozen=True):
    """An answer. `body` is decoded JSON."""

    status: int
    headers: dict[str, str]
    body: Any


class Broken(Exception):
    """No answer: the connection was refused, cut, or silent for too long."""


class Caller:
    """One connection, made again at the next request after it broke."""

    def __init__(self, host: str, port: int, *, key: str) -> None:
        self._address = host, port
        self._head = f"host: {host}\r\nauthorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def post(self, path: str, body: bytes, *, media: str = "application/json", limit_s: float = LIMIT_S) -> Answered:
        """The answer with any status. Raises `Broken`; then the request may have been executed."""
        return await self._ask("POST", path, body, media=media, limit_s=limit_s)

    async def get(self, path: str, *, limit_s: float = LIMIT_S) -> Answered:
        return await self._ask("GET", path, b"", media="application/json", limit_s=limit_s)

    async def delete(self, path: str) -> Answered:
        return await self._ask("DELETE", path, b"", media="application/json", limit_s=LIMIT_S)

    async def _ask(self, method: str, path: str, body: bytes, *, media: str, limit_s: float) -> Answered:
        head = f"{method} {path} HTTP/1.1\r\n{self._head}content-type: {media}\r\ncontent-length: {len(body)}\r\n\r\n"
        try:
            async with asyncio.timeout(limit_s):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(*self._address)
                reader, writer = self._streams
                writer.write(head.encode() + body)
                answer = await _read(reader)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error
        except BaseException:
            self.close()
            raise
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer


async def _read(reader: asyncio.StreamReader) -> Answered:
    start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw = await reader.readexactly(int(headers.get("content-length", "0")))
    is_json = "json" in headers.get("content-type", "")
    return Answered(int(start.split(" ")[1]), headers, msgspec.json.decode(raw) if is_json and raw else raw.decode())
