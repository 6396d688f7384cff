"""The account that the servers run as if root starts them, and their folders: private to it, and in use by one process at a time.

Postgres refuses to run as root, and no server should: its superuser may run programs. For root both servers run as `adjourn`, if
the machine has that account, or as `bin`, which every Unix has and nothing runs as. The account has no capabilities. It may not
enter `var/`, which is root's, so a child gets its folders as open descriptors and names them `/proc/self/fd/N`. Programs that
the account cannot reach, in an environment under `/root` for example, run from a copy under `/var/cache/adjourn`. For any other
user the servers run as that user. A child of either kind arranges its own end before exec: it ends with its parent.

`var/` and the folder of the sockets are mode 0700. A folder that belongs to another user, or that others could have written to,
is refused and never followed: it may hold anything. The lock is the kernel's (`flock`), so it ends with its holder, however
that ends; the text of the file, the holder's pid, is only for the message.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from app.errors import CannotStart

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_NO_NEW_PRIVS = 38

_linux = sys.platform == "linux"
# Loaded before any fork: a child between fork and exec must not take the loader's lock.
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent(number: signal.Signals) -> Callable[[], None]:
    """Return a function for a child to run before exec: the kernel then sends it this signal when the forking thread ends."""
    parent = os.getpid()

    def arrange() -> None:
        if not _linux:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call above, so no signal would ever come
            os._exit(1)

    return arrange


def name_process(name: str) -> None:
    """Have `ps -o comm` and `top` show this name, of up to 15 characters. Forks keep the arguments of their parent."""
    if _linux:
        _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def run_as(uid: int, gid: int, *, then: Callable[[], None]) -> Callable[[], None]:
    """Return a function for a child of root to run before exec: it becomes this user, without capabilities, for good.

    `then` comes last: a change of user clears what `end_with_parent` arranged.
    """

    def become() -> None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if _linux:
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        then()

    return become


_NAMES = ("adjourn", "bin")
PROGRAM_CACHE = Path("/var/cache/adjourn")


class SystemUser(Struct, frozen=True):
    """A user that a child of root becomes."""

    uid: int
    gid: int


class FolderNames(Struct, frozen=True):
    """Folders as a child names them, and the descriptors that it inherits for it."""

    names: tuple[str, ...]
    descriptors: tuple[int, ...] = ()


def server_account() -> SystemUser | None:
    """Give the account for the servers, or `None` where they run as the user who starts them. Raises `CannotStart`."""
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        msg = "embedded servers do not run for root here: start as another user, or set REDIS_URL and DATABASE_URL"
        raise CannotStart(msg)
    for name in _NAMES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(entry.pw_uid, entry.pw_gid)
    msg = "embedded servers do not run as root: create a system user `adjourn` for them, or start as an ordinary user"
    raise CannotStart(msg)


def becoming(account: SystemUser | None, *, then: Callable[[], None]) -> Callable[[], None]:
    """Return what a child runs before exec to become this account, if any, and then `then`."""
    return then if account is None else run_as(account.uid, account.gid, then=then)


@contextmanager
def view_of(account: SystemUser | None, *folders: Path) -> Iterator[FolderNames]:
    """Name folders for a child. Descriptors are open until the end of the block, which must include the fork."""
    if account is None:
        yield FolderNames(tuple(map(str, folders)))
        return
    with ExitStack() as stack:
        opened = tuple(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) for folder in folders)
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        yield FolderNames(tuple(f"/proc/self/fd/{descriptor}" for descriptor in opened), opened)


def give(folder: Path, account: SystemUser | None) -> None:
    """Make the account the owner of a folder and of all that is in it; the folder itself last, since it is the sign."""
    if account is None or folder.lstat().st_uid == account.uid:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(parent, name), account.uid, account.gid, follow_symlinks=False)
    os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def runnable(program: Path, account: SystemUser | None, *, root: Path, parts: tuple[str, ...]) -> Path:
    """Give `program` or, if the account cannot run it where it is, an equal one that root keeps for it.

    `parts` are the folders under `root` that the program needs, itself included, which are copied side by side.
    """
    if account is None or _open_to_all(program):
        return program
    main = root / parts[0]
    digest = hashlib.sha256(f"{main} {main.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    copy = PROGRAM_CACHE / f"{main.name}-{digest}"
    if not copy.exists():
        try:
            _copy(root, parts, copy)
        except OSError as error:
            msg = f"{program} is closed to the account that servers of root run as, and cannot be copied to {copy}: {error}"
            raise CannotStart(msg) from error
    return copy / program.relative_to(root)


def _open_to_all(path: Path) -> bool:
    wanted = stat.S_IROTH | stat.S_IXOTH
    real = path.resolve()
    return real.stat().st_mode & wanted == wanted and all(each.stat().st_mode & stat.S_IXOTH for each in real.parents)


def _copy(root: Path, parts: tuple[str, ...], copy: Path) -> None:
    PROGRAM_CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = copy.with_name(f"{copy.name}.{os.getpid()}")
    for part in parts:
        shutil.copytree(root / part, fresh / part, symlinks=True, ignore=shutil.ignore_patterns("include", "*.py", "__pycache__"))
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if path.is_dir() or mode & stat.S_IXUSR else 0o444))
    try:
        fresh.rename(copy)
    except OSError:
        shutil.rmtree(fresh)
        if not copy.exists():  # otherwise another start was first
            raise


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
