"""A process with the product imported that runs `adjourn` commands as forks of itself: `python -m tests.supervisor.starter`.

A start that fails ends before it does anything, so importing the product would be nearly all of its time. A fork runs the same
`main()` with its own arguments, environment, folder and output. Orders and results are lines of JSON.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 20


class Ended(Struct, frozen=True):
    """A command that has ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


class Starter:
    """Runs commands one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.supervisor.starter"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_START"},
        )

    def run(self, *arguments: str, folder: Path, environment: dict[str, str]) -> Ended:
        assert self._process.stdin is not None
        assert self._process.stdout is not None

        order = {"arguments": arguments, "folder": str(folder), "environment": environment}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    import app.main  # noqa: PLC0415 - so that no fork must import it
    import app.supervisor.serve  # noqa: PLC0415
    import app.worker  # noqa: F401, PLC0415

    for line in sys.stdin:
        order = json.loads(line)
        folder = Path(order["folder"])
        child = os.fork()
        if child == 0:
            _become(order)
        _, status = os.waitpid(child, 0)
        out, err = ((folder / name).read_text() for name in ("stdout", "stderr"))
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status), "out": out, "err": err}) + "\n")
        sys.stdout.flush()


def _become(order: dict[str, Any]) -> None:
    from app import cli  # noqa: PLC0415

    signal.alarm(LONGEST_S)  # a start that works would run for ever
    os.chdir(order["folder"])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    if hidden := os.environ.get("HIDE"):  # as if this package were not installed
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == hidden else find(name, package)
    sys.argv = ["adjourn", *order["arguments"]]
    code: object = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - printed as the interpreter would
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    _serve()
