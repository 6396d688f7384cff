"""A fork of the supervisor is like a process that was just started: neither reaches what is the other's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from app.supervisor.fork import ForkedProcess, fork


async def _ended(main: Callable[[], object], *, keeps: tuple[int, ...] = ()) -> int | None:
    process = fork(main, ["adjourn", "api"], environment={"PROCESS_NAME": "api"}, keeps=keeps)
    async with asyncio.timeout(60):
        return await process.wait()


async def test_it_has_its_own_arguments_environment_group_and_signal_handlers(tmp_path: Path) -> None:
    """The event loop of the supervisor has handlers, and a descriptor to which the interpreter reports signals."""
    report = tmp_path / "report"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)

    def write() -> None:
        is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        found = [sys.argv, dict(os.environ), os.getpgid(0) == os.getpid(), is_default, blocked, signal.set_wakeup_fd(-1)]
        report.write_text(json.dumps(found))

    try:
        code = await _ended(write)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)

    assert code == 0
    assert json.loads(report.read_text()) == [["adjourn", "api"], {"PROCESS_NAME": "api"}, True, True, 0, -1]


async def test_it_runs_an_event_loop_of_its_own() -> None:
    """Although it was forked in the middle of the supervisor's."""
    assert await _ended(lambda: asyncio.run(asyncio.sleep(0))) == 0


async def test_it_has_the_descriptors_that_it_keeps_and_no_other() -> None:
    """A lock, for example, would be held until the last process that has its descriptor ends."""
    (kept, written), (other, _) = os.pipe(), os.pipe()
    os.write(written, b"1")

    def read() -> None:
        assert os.read(kept, 1) == b"1"
        assert os.read(other, 1) == b""  # of an empty file; of the pipe it would wait

    try:
        assert await _ended(read, keeps=(kept,)) == 0
    finally:
        for number in (kept, written, other, _):
            os.close(number)


async def test_objects_of_the_supervisor_that_end_in_it_close_nothing_of_its_own(tmp_path: Path) -> None:
    """The files of the metrics are such objects: the library drops them in a process with another pid."""
    held = [(tmp_path / str(number)).open("w") for number in range(10)]

    def write() -> None:
        own = [(tmp_path / f"own-{number}").open("w") for number in range(10)]
        for file in held:
            file.close()
        for file in own:
            file.write("1")
            file.close()

    try:
        assert await _ended(write) == 0
    finally:
        for file in held:
            file.close()
    assert (tmp_path / "own-9").read_text() == "1"


async def test_its_exit_code_is_reported_and_it_never_returns() -> None:
    """An error is one traceback and 1, an exit its code, a signal its number."""

    def fail() -> None:
        raise ValueError

    def leave() -> None:
        sys.exit(7)

    def end() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    assert [await _ended(main) for main in (fail, leave, end)] == [1, 7, -signal.SIGKILL]


async def test_one_that_has_ended_gets_no_signal() -> None:
    """Its pid may be another process's."""
    process: ForkedProcess = fork(lambda: None, [], environment={}, keeps=())
    async with asyncio.timeout(60):
        await process.wait()

    try:
        process.kill()
    except ProcessLookupError:
        return
    raise AssertionError
