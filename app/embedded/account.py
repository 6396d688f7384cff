"""The account that the servers run as if root starts them, and how they reach their folders and programs.

Postgres refuses to run as root, and no server should: its superuser may run programs. For root both servers run as `adjourn`, if
the machine has that account, or as `bin`, which every Unix has and nothing runs as. The account has no capabilities. It may not
enter `var/`, which is root's, so a child gets its folders as open descriptors and names them `/proc/self/fd/N`. Programs that
the account cannot reach, in an environment under `/root` for example, run from a copy under `/var/cache/adjourn`.

For any other user the servers run as that user. A child of either kind arranges its own end before exec: it ends with its parent.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct

from app.errors import CannotStart

_PR_SET_PDEATHSIG = 1
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
