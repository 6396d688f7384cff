"""How many instructions of its process a request takes, by callgrind: other work of the machine does not change the figure.

Optional, since it needs valgrind (a Debian package) and about a minute a target. The count begins once the process has started
and is warm.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

from app.settings import Settings
from bench.load import Load
from bench.routes import Target, offer, targets

SECONDS = 15.0
IDLE_S = 3.0
CONNECTIONS = 64
_TOTALS = re.compile(r"^(?:totals|summary): (\d+)", re.MULTILINE)


def measure(settings: Settings, key: str, names: frozenset[str] = frozenset()) -> dict[str, float]:
    """Instructions a request, of each target."""
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        under = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/%p", sys.executable)
        for running in targets(settings, names=names, under=under):
            with running as target:
                offer(_load(target, key, run=0), timeout_s=300)
                taken[target.name] = _count(target, key, Path(folder))
    return taken


def show(taken: dict[str, float]) -> None:
    """Thousands a request, and the ratio to the bare server."""
    bare = taken.get("bare ASGI app")
    print(f"\nInstructions a request (callgrind), {CONNECTIONS} connections")
    for name, each in taken.items():
        ratio = f"{each / bare:>8.2f}x" if bare else ""
        print(f"  {name:<26}{each / 1_000:>8.0f} k{ratio}")


def _count(target: Target, key: str, folder: Path) -> float:
    """The instructions of a load, without those that the process takes for itself in the same time, by its requests."""
    _control("--instr=on", target.process.pid)
    began = monotonic()
    counted = offer(_load(target, key, run=1), timeout_s=300)
    seconds, during = monotonic() - began, _taken(target, folder)
    began = monotonic()
    sleep(IDLE_S)
    idle_a_second = _taken(target, folder) / (monotonic() - began)
    return (during - idle_a_second * seconds) / counted.total


def _taken(target: Target, folder: Path) -> int:
    """The instructions since the call before."""
    pid = target.process.pid
    known = set(folder.glob(f"{pid}.*"))
    _control("--dump", pid)
    while not (written := set(folder.glob(f"{pid}.*")) - known):
        sleep(0.1)
    return int(_TOTALS.findall(written.pop().read_text())[0])


def _load(target: Target, key: str, *, run: int) -> Load:
    seconds = SECONDS if run else SECONDS / 4
    return Load(target.port, target.path, key=key, connections=CONNECTIONS, depth=1, seconds=seconds, run=run)


def _control(command: str, pid: int) -> None:
    program = shutil.which("callgrind_control")
    assert program is not None, "callgrind_control is not installed"
    subprocess.run([program, command, str(pid)], check=True, capture_output=True, timeout=120)
