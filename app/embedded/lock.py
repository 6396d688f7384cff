"""One user at a time for a `var/` folder.

The lock is the kernel's (`flock`), so it falls with its holder however that ends; the file's text, the holder's pid,
is only for the message.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import CannotStart


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold `path` until the end of the block; raise `CannotStart` naming the holder if another process has it."""
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
        # The file stays: removing it would let two processes lock two files of the same name.
        os.close(descriptor)
