"""The folders of the embedded servers: private to their user, and in use by one process at a time.

`var/` and the folder of the sockets are mode 0700. A folder that belongs to another user, or that others could have written to,
is refused and never followed: it may hold anything. The lock is the kernel's (`flock`), so it ends with its holder, however
that ends; the text of the file, the holder's pid, is only for the message.
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

from app.embedded.account import SystemUser
from app.errors import CannotStart

_LOCK = "lock"
_OURS = frozenset({_LOCK, "log", "run", "redis", "postgres", "postgres.new"})
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
# A Unix socket's path must fit in 108 bytes on Linux and 104 on macOS.
_LONGEST_PATH = 103
_LONGEST_NAME = "/.s.PGSQL.5432.lock"


def open_var(var_dir: Path) -> None:
    """Make `var/` or take the one that is there, and close it to other users. Raises `CannotStart`."""
    try:
        var_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        present = {path.name for path in var_dir.iterdir()}
        open_to_others = var_dir.stat().st_mode & 0o077
    except OSError as error:
        msg = f"VAR_DIR {var_dir} cannot be used: {error.strerror}; set it to a folder of your own"
        raise CannotStart(msg) from error
    # Closing a folder of other things, a home or a project, would lock out those who use it.
    if open_to_others and present and not present & _OURS:
        msg = f"VAR_DIR {var_dir} holds other things ({min(present)}): set it to a new or empty folder"
        raise CannotStart(msg)
    _make_private(var_dir, owners={os.geteuid()})
    (var_dir / "log").mkdir(mode=0o700, exist_ok=True)


def was_used(var_dir: Path) -> bool:
    """Whether a start has been on this folder, and this user may look into it."""
    return os.access(var_dir / _LOCK, os.F_OK)


def socket_folder(var_dir: Path, *, account: SystemUser | None) -> Path:
    """Make and return the folder of the sockets: `run` in `var/`, or one of the temporary folder if that path is too long.

    Its name depends on `var_dir` alone, so that a start after a crash finds the same folder and none pile up.
    """
    folder = var_dir / "run"
    if len(os.fsencode(folder)) + len(_LONGEST_NAME) > _LONGEST_PATH:
        digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"adjourn-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    owners = {os.geteuid()} if account is None else {os.geteuid(), account.uid}
    _make_private(folder, owners=owners)
    if account is not None:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)
    return folder


@contextmanager
def folder_lock(var_dir: Path) -> Iterator[None]:
    """Hold the folder until the end of the block; raise `CannotStart` naming the holder if another process has it."""
    path = var_dir / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text().strip() or "unknown"
            msg = f"{var_dir} is in use by process {holder}: stop that one, or set VAR_DIR to another folder"
            raise CannotStart(msg) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        # The file stays: removing it would let two processes lock two files of the same name.
        os.close(descriptor)


def write_private(path: Path, text: str, *, account: SystemUser | None) -> None:
    """Replace a file by one that its server alone may read. Follows no link, and leaves the old or the new text, never half."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
    finally:
        os.close(descriptor)
    fresh.rename(path)


def _make_private(folder: Path, *, owners: set[int]) -> None:
    """Set the mode to 0700. Refuses a folder of another user, one that all share, and one where others may have put something."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        msg = f"{folder} is not a folder of this user's ({error.strerror}): remove it, or set VAR_DIR to another path"
        raise CannotStart(msg) from error
    try:
        status = os.fstat(descriptor)
        if status.st_uid not in owners:
            msg = f"{folder} belongs to another user (uid {status.st_uid}): remove it, or set VAR_DIR to another path"
            raise CannotStart(msg)
        os.fchmod(descriptor, 0o700)
        # Listed after the change of mode: from then on no other user can add anything.
        with os.scandir(descriptor) as entries:
            planted = status.st_mode & _WRITABLE_BY_OTHERS and any(entries)
        if planted or status.st_mode & stat.S_ISVTX:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            msg = f"{folder} can be written by other users: look through it and `chmod 700` it, or set VAR_DIR to another path"
            raise CannotStart(msg)
    finally:
        os.close(descriptor)
