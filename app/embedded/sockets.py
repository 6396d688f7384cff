"""Where the sockets lie: under `var/`, or in a private folder under the temporary one when that path is too long.

A Unix socket's path must fit in 108 bytes on Linux and 104 on macOS.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from app.errors import CannotStart

_LONGEST_PATH = 103
_LONGEST_NAME = "/.s.PGSQL.5432.lock"


def socket_folder(var_dir: Path) -> Path:
    """Make and return the folder, which nobody but this user may enter.

    Its name depends on `var_dir` alone, so that what a killed process left is used again and not heaped up.
    """
    folder = var_dir / "run"
    if len(os.fsencode(folder)) + len(_LONGEST_NAME) > _LONGEST_PATH:
        digest = hashlib.sha256(os.fsencode(var_dir)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"adjourn-{os.geteuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_foreign(folder)
    return folder


def _refuse_foreign(folder: Path) -> None:
    # Anyone may create a name under /tmp first; root's own servers run as another user, whom root trusts.
    status = folder.lstat()
    owned = status.st_uid == os.geteuid() or os.geteuid() == 0
    if not stat.S_ISDIR(status.st_mode) or not owned:
        msg = f"{folder} belongs to someone else: remove it, or set VAR_DIR to a shorter path"
        raise CannotStart(msg)
    folder.chmod(0o700)
