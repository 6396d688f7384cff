"""The supervisor's places: kept filled, refilled, replaced and emptied. The programs are real processes."""

from __future__ import annotations

import asyncio
import errno
import os
import runpy
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil
import pytest

from app.supervisor import child as child_module
from app.supervisor import processes
from app.supervisor.child import Child

ANNOUNCING = """
import os, pathlib, signal, sys, time
descriptor = int(sys.argv[sys.argv.index("--ready-fd") + 1])
with open(sys.argv[1], "a") as log:
    log.write(f"{os.getpid()}\\n")
if pathlib.Path(sys.argv[1] + ".broken").exists():
    sys.exit(3)
if len(sys.argv) > 4 and sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(descriptor, b"1")
os.close(descriptor)
time.sleep(60)
"""


class Way(StrEnum):
    """How a process comes to be."""

    STARTED = "started"
    FORKED = "forked"


@pytest.fixture(params=tuple(Way))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    # Threads of pytest do no harm to a fork that runs a small program.
    monkeypatch.setattr(child_module, "can_fork", lambda: True)
    return Way(request.param)


class Place:
    """A child that notes the pid of each process that held its place."""

    def __init__(self, folder: Path, way: Way, *, manner: str = "") -> None:
        self.log = folder / "pids"
        self.ended: list[int] = []
        program = folder / "program.py"
        program.write_text(textwrap.dedent(ANNOUNCING))
        self.child = Child(
            "place",
            ["-m", "program", str(self.log), *([manner] if manner else [])],
            environment={**os.environ, "PYTHONPATH": str(folder)},
            announces=True,
            on_end=self.ended.append,
            main=partial(runpy.run_path, str(program), run_name="__main__") if way is Way.FORKED else None,
        )

    @property
    def pids(self) -> list[int]:
        return [int(pid) for pid in self.log.read_text().split()] if self.log.exists() else []

    def break_program(self) -> None:
        Path(f"{self.log}.broken").touch()

    def mend_program(self) -> None:
        Path(f"{self.log}.broken").unlink()


@asynccontextmanager
async def _kept(place: Place) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(place.child.keep())
    try:
        yield task
    finally:
        await place.child.stop(within_s=0.5)
        await task


def _refuse_to_start(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Have the system refuse processes until `undo`; gives the refusals."""
    refusals: list[OSError] = []

    def refuse(*_: object, **__: object) -> NoReturn:
        refusals.append(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
        raise refusals[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    monkeypatch.setattr(os, "fork", refuse)
    return refusals


async def _until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not met():
            await asyncio.sleep(0.01)


def _lives(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


async def test_a_process_that_dies_is_started_again(tmp_path: Path, way: Way) -> None:
    """A child that is killed is restarted, and its end is reported."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        first = place.pids[0]
        os.kill(first, signal.SIGKILL)
        await _until(lambda: len(place.pids) == 2)

        assert place.ended == [first]
        assert _lives(place.pids[1])


async def test_one_that_never_starts_is_given_up(tmp_path: Path, way: Way) -> None:
    """A wrong setting must end the start, not repeat it for ever."""
    place = Place(tmp_path, way)
    place.break_program()
    async with _kept(place) as task:
        await place.child.failed_to_start.wait()
        await task

    assert len(place.pids) == 1
    assert not place.child.ready.is_set()


async def test_one_that_worked_once_is_tried_until_it_works_again(tmp_path: Path, way: Way) -> None:
    """Its Redis may be down for a while: failures after the first success are not the end."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        place.break_program()
        os.kill(place.pids[0], signal.SIGKILL)
        await _until(lambda: len(place.pids) == 3)
        place.mend_program()
        await _until(lambda: len(place.pids) == 4)

        assert _lives(place.pids[-1])


async def test_one_that_cannot_be_started_is_tried_until_it_can(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process to be had, no memory, a program that is being replaced: it passes, and takes no descriptors with it."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        before = psutil.Process().num_fds()
        refusals = _refuse_to_start(monkeypatch)
        os.kill(place.pids[0], signal.SIGKILL)
        await _until(lambda: len(refusals) == 3)
        monkeypatch.undo()
        await _until(lambda: len(place.pids) == 2 and psutil.Process().num_fds() <= before)

        assert _lives(place.pids[1])


async def test_the_first_start_is_tried_again_too(tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that could not be started at all did not fail by itself."""
    place, refusals = Place(tmp_path, way), _refuse_to_start(monkeypatch)
    async with _kept(place):
        await _until(lambda: len(refusals) == 2)
        monkeypatch.undo()
        await _until(place.child.ready.is_set)

    assert not place.child.failed_to_start.is_set()


async def test_a_second_one_that_cannot_be_started_is_tried_until_it_can(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first works on meanwhile."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        refusals = _refuse_to_start(monkeypatch)
        replacing = asyncio.create_task(place.child.replace())
        await _until(lambda: len(refusals) == 2)
        kept = _lives(place.pids[0])
        monkeypatch.undo()
        await replacing

        assert kept
        assert not _lives(place.pids[0])
        assert _lives(place.pids[1])


async def test_an_error_that_cannot_be_logged_ends_nothing(tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the disk full neither the metrics nor the log can be written."""
    place, failures = Place(tmp_path, way), list[str]()

    def fail(*_: object, **__: object) -> None:
        failures.append("full")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(place.child, "_on_end", fail)
    monkeypatch.setattr(child_module, "log", SimpleNamespace(error=fail, warning=fail))
    async with _kept(place):
        await place.child.ready.wait()
        os.kill(place.pids[0], signal.SIGKILL)
        await _until(lambda: len(place.pids) == 2)
        monkeypatch.undo()

    assert failures


async def test_watching_and_replacing_go_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies, or a signal that comes, after the disk was full once, is still handled."""
    monkeypatch.setattr(processes, "_WATCH_S", 0.01)
    event, watched, replaced = asyncio.Event(), list[int](), list[int]()

    def watch() -> None:
        watched.append(1)
        if len(watched) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def replace() -> None:
        replaced.append(1)
        if len(replaced) == 1:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    tasks = [asyncio.create_task(processes._repeat(watch)), asyncio.create_task(processes._on_each(event, replace))]
    for count in (1, 2):
        event.set()
        await _until(lambda: len(replaced) == count)  # noqa: B023 - awaited here
    await _until(lambda: len(watched) > 1)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(end) for end in ends} == {asyncio.CancelledError}


async def test_replacing_starts_the_second_before_it_ends_the_first(tmp_path: Path, way: Way) -> None:
    """At no moment is the place empty, and afterwards the second is kept like the first."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        await place.child.replace()
        first, second = place.pids
        await _until(lambda: place.ended == [first])

        assert _lives(second)
        os.kill(second, signal.SIGKILL)
        await _until(lambda: len(place.pids) == 3)


async def test_a_replacement_and_what_follows_it_run_the_code_on_disk(tmp_path: Path) -> None:
    """A fork runs the code that was imported before the upgrade."""
    place = Place(tmp_path, Way.FORKED)
    async with _kept(place):
        await place.child.ready.wait()
        await place.child.replace()
        os.kill(place.pids[1], signal.SIGKILL)
        await _until(lambda: len(place.pids) == 3)

        forked, *started = (psutil.Process(pid).cmdline() if _lives(pid) else [] for pid in place.pids)
        assert forked == []
        assert "program" in started[-1]


async def test_a_broken_second_process_leaves_the_first_in_place(tmp_path: Path, way: Way) -> None:
    """A rolling restart into a broken version stops at its first process."""
    place = Place(tmp_path, way)
    async with _kept(place):
        await place.child.ready.wait()
        place.break_program()
        await place.child.replace()

        assert _lives(place.pids[0])
        assert not _lives(place.pids[1])


async def test_stopping_is_bounded(tmp_path: Path, way: Way) -> None:
    """A child that ignores SIGTERM is killed when its time is up, and none is started after."""
    place = Place(tmp_path, way, manner="deaf")
    async with _kept(place):
        await place.child.ready.wait()

    assert len(place.pids) == 1
    assert not _lives(place.pids[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part exists on Linux alone")
async def test_a_child_ends_with_its_killed_supervisor(tmp_path: Path, way: Way) -> None:
    """Kill -9 of the supervisor leaves no process behind."""
    script = tmp_path / "supervisor.py"
    script.write_text(
        textwrap.dedent("""
            import asyncio, os, sys, time
            from app.supervisor.child import Child
            async def main():
                child = Child("c", ["-c", "import time; time.sleep(60)"], environment=dict(os.environ), announces=False,
                              on_end=print, main=(lambda: time.sleep(60)) if sys.argv[1] == "forked" else None)
                asyncio.ensure_future(child.keep())
                await child.ready.wait()
                print(child._process.pid, flush=True)
                await asyncio.sleep(60)
            asyncio.run(main())
        """)
    )
    supervisor = await asyncio.create_subprocess_exec(sys.executable, str(script), way, stdout=asyncio.subprocess.PIPE)
    assert supervisor.stdout is not None
    pid = int(await supervisor.stdout.readline())
    supervisor.kill()
    await supervisor.wait()

    await _until(lambda: not _lives(pid))
