"""The `var/` folder: its lock, which one process at a time holds, and the folder of its sockets.

The lock is the kernel's (`flock`), so it is released however its holder ends; the pid in the file is only for the message.
A Unix socket's path must fit in 108 bytes on Linux and 104 on macOS; if `var/` has a longer one, the sockets lie in a folder
under the temporary one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import CannotStart

_LONGEST_PATH = 103
_LONGEST_NAME = "/.s.PGSQL.5432.lock"


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold the lock until the end of the block; raise `CannotStart` with the holder's pid if another process has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "unknown"
            msg = f"{path.parent} is in use by process {holder}: stop that one, or set VAR_DIR to another folder"
            raise CannotStart(msg) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        # The file stays: without it two processes could lock two files of the same name.
        os.close(descriptor)


def socket_folder(var_dir: Path) -> Path:
    """Make and return the folder of the sockets, which only this user may enter.

    Its name depends on `var_dir` alone, so that the folder of a killed process is reused.
    """
    folder = var_dir / "run"
    if len(os.fsencode(folder)) + len(_LONGEST_NAME) > _LONGEST_PATH:
        digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"adjourn-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(folder)
    return folder


def _refuse_foreign(folder: Path) -> None:
    # Any user may create a name under /tmp first. For root, Postgres runs as another user, which owns the folder.
    status = folder.lstat()
    owned = status.st_uid == os.geteuid() or os.geteuid() == 0
    if not stat.S_ISDIR(status.st_mode) or not owned:
        msg = f"{folder} belongs to another user: remove it, or set VAR_DIR to a shorter path"
        raise CannotStart(msg)
    folder.chmod(0o700)
