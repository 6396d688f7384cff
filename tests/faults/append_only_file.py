"""The append-only file of a Redis as a power loss leaves it: without its last moments. The part that is cut off is read first."""

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

_MESSAGES = re.compile(rb"adj:\{\d+\}:m:")


class Cut(Struct, frozen=True):
    """A cut: the ids of messages in the part that was cut off, and the length of the file afterwards, in bytes."""

    message_ids: frozenset[str]
    kept: int


def path_in(data_dir: Path) -> Path:
    """The file that is being written; since Redis 7 it lies in a folder, and has a number."""
    increments = sorted(data_dir.glob("appendonlydir/*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    return increments[-1] if increments else data_dir / "appendonly.aof"


def cut(path: Path, *, to: int, known: int = 0) -> Cut:
    """Cut the file of a dead Redis at `to` bytes. `known`: where a command begins, so that what is before need not be read."""
    with path.open("rb") as file:
        file.seek(known)
        data = file.read()
    kept, message_ids = known, set()
    for end, transaction in _transactions(data):
        if known + end <= to:
            kept = known + end
        else:
            message_ids |= {message_id for command in transaction for message_id in _message_ids(command)}
    with path.open("r+b") as file:
        # In the middle of a command or a transaction, as it comes: Redis itself goes back to where the last whole one ends.
        file.truncate(to)
    return Cut(frozenset(message_ids), kept)


def _transactions(data: bytes) -> Iterator[tuple[int, list[list[bytes]]]]:
    """Commands that stand together, a script's within MULTI and EXEC, each with where it ends."""
    at, together, open_one = 0, [], False
    while at < len(data):
        command, at = _command(data, at)
        together.append(command)
        open_one = (open_one or command == [b"MULTI"]) and command != [b"EXEC"]
        if not open_one:
            yield at, together
            together = []


def _command(data: bytes, at: int) -> tuple[list[bytes], int]:
    end = data.index(b"\r\n", at)
    count, at = int(data[at + 1 : end]), end + 2
    words = []
    for _ in range(count):
        end = data.index(b"\r\n", at)
        length = int(data[at + 1 : end])
        words.append(data[end + 2 : end + 2 + length])
        at = end + 4 + length
    return words, at


def _message_ids(command: list[bytes]) -> Iterator[str]:
    if command[0].upper() in {b"HSET", b"HSETNX"} and _MESSAGES.match(command[1]):
        yield from (field.decode() for field in command[2::2] if not field.startswith(b"\x1f"))
