"""`adjourn serve` with no URL set: one command, everything runs, and everything ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import environment_with
from tests.acceptance.serving import Serving, folder, lives, serving, until

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    """One that the tests of this file share; each leaves it working."""
    with folder() as var_dir, serving(var_dir, "--workers", "2") as running:
        yield running


def _all_processes(running: Serving) -> list[psutil.Process]:
    return list(psutil.Process(running.process.pid).children(recursive=True))


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("bash") is None, reason="needs curl and bash")
def test_the_printed_curl_lines_work_when_pasted(served: Serving) -> None:
    """They make a bot, post a message and show the open session, with the real key and address."""
    answers = [
        subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=20).stdout
        for line in served.curl_lines
    ]

    assert len(answers) == 3
    session = httpx.Response(200, text=answers[1]).json()["session_id"]
    assert session in answers[2]


def test_everything_is_ready(served: Serving) -> None:
    """Redis, Postgres and the worker are all well, also by the strict measure."""
    until(served.well)

    assert {part: len(found) for part, found in served.processes().items()} == {
        "api": 2,
        "worker": 1,
        "valkey-server": 1,
        "postgres": 1,
    }


@pytest.mark.parametrize("part", ("api", "worker"))
def test_the_health_checks_find_what_runs(served: Serving, part: str) -> None:
    """With the folder and the port alone: no URL is set where the servers are embedded."""
    until(served.well)
    checked = subprocess.run(
        [sys.executable, "-m", "app.cli", "check", part],
        env=environment_with(redis_url=None, database_url=None, var_dir=served.var_dir, port=httpx.URL(served.url).port),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert checked.returncode == 0, checked.stderr


def test_the_metrics_are_those_of_all_processes(served: Serving) -> None:
    """Any API process answers the counts of the worker and of the others."""
    metrics = httpx.get(f"{served.url}/metrics")

    assert metrics.status_code == 200
    assert "adjourn_" in metrics.text


def test_a_second_start_on_the_same_folder_is_refused(served: Serving) -> None:
    """It names the process that has the folder, and the first one goes on."""
    second = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", "0", "--var-dir", str(served.var_dir)],
        env=environment_with(redis_url=None, database_url=None),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert second.returncode == 1
    assert second.stderr.startswith(f"adjourn: {served.var_dir} is in use by process {served.process.pid}: ")
    assert second.stderr.count("\n") == 1
    assert httpx.get(f"{served.url}/readyz").status_code == 200


@pytest.mark.parametrize("part", ("api", "worker", "valkey-server", "postgres"))
def test_a_part_that_dies_comes_back(served: Serving, part: str) -> None:
    """Kill -9 of any child costs a moment; the others go on, and all is well again."""
    until(served.well)
    before = served.processes()
    victim = before[part][0]
    victim.kill()
    until(lambda: not lives(victim))
    until(lambda: len(served.processes().get(part, [])) == len(before[part]))
    until(served.well)

    others = {child.pid for name, found in before.items() for child in found if name != part}
    assert others <= {child.pid for found in served.processes().values() for child in found}


def test_a_rolling_restart_refuses_no_connection(served: Serving) -> None:
    """SIGUSR1 replaces each process while a client keeps asking on new connections and on one that it holds."""
    before = {child.pid for part in ("api", "worker") for child in served.processes()[part]}
    ended, failures, answers = threading.Event(), [], []

    def ask(*, keep: bool) -> None:
        with httpx.Client(base_url=served.url, timeout=10) as held:
            while not ended.is_set():
                try:
                    answer = held.get("/healthz") if keep else httpx.get(f"{served.url}/healthz", timeout=10)
                    answers.append(answer.status_code)
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    clients = [threading.Thread(target=ask, kwargs={"keep": keep}) for keep in (True, False)]
    for client in clients:
        client.start()
    served.process.send_signal(signal.SIGUSR1)
    until(lambda: not before & {child.pid for child in _all_processes(served)}, within_s=60)
    ended.set()
    for client in clients:
        client.join()

    assert failures == []
    assert set(answers) == {200}
    until(served.well)


def test_a_stop_ends_everything_and_the_next_start_finds_its_data() -> None:
    """Exit code 0 and no process left, by Ctrl-C as by a closed terminal; afterwards the same key opens the same session."""
    with folder() as var_dir:
        with serving(var_dir) as first:
            key = first.key
            for line in first.curl_lines[:2]:
                subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=20)
            processes = _all_processes(first)
            code = first.stop(signal.SIGINT)
        with serving(var_dir) as second:
            answer = httpx.get(f"{second.url}/v1/bots/demo/live", headers={"Authorization": f"Bearer {key}"})
            second_code = second.stop(signal.SIGHUP)

    assert (code, second_code) == (0, 0), first.output
    assert not any(lives(process) for process in processes)
    assert answer.status_code == 200
    assert len(answer.json()["sessions"]) == 1
    assert "curl" not in second.output


@pytest.mark.slow
def test_it_can_be_interrupted_in_the_background() -> None:
    """A shell starts what stands before `&` with SIGINT ignored; `kill -INT` works all the same."""
    with folder() as var_dir, serving(var_dir, ignored="INT") as running:
        code = running.stop(signal.SIGINT)

    assert code == 0


@pytest.mark.slow
def test_it_outlives_its_terminal_under_nohup() -> None:
    """SIGHUP stops it, unless it was started to ignore that."""
    with folder() as var_dir, serving(var_dir, ignored="HUP") as running:
        running.process.send_signal(signal.SIGHUP)
        until(running.well)

        assert running.process.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start ends what is left")
def test_killing_the_supervisor_leaves_nothing_running() -> None:
    """Kill -9: the kernel signals the children, and the next start works at once."""
    with folder() as var_dir:
        with serving(var_dir) as first:
            processes = _all_processes(first)
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
        with serving(var_dir) as second:
            ready = httpx.get(f"{second.url}/readyz").status_code
            code = second.stop(signal.SIGTERM)
        until(lambda: not any(lives(process) for process in processes))

    assert (ready, code) == (200, 0)


def test_metrics_have_a_port_of_their_own(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """The start prints where the document is; each port refuses what the other one has."""
    urls = {"redis_url": redis_url, "database_url": database_url}
    with serving(tmp_path / "var", "--no-worker", operations_port=0, **urls) as running:
        docs = re.search(r"docs +(http://\S+)/docs", running.output)
        assert docs is not None
        ports = (running.url, docs[1])
        answers = {
            path: [httpx.get(f"{url}{path}").status_code for url in ports] for path in ("/metrics", "/console/", "/healthz")
        }

    assert answers == {"/metrics": [404, 200], "/console/": [303, 404], "/healthz": [200, 200]}


def test_servers_of_ones_own_are_used_and_nothing_is_started(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """With both URLs set there is no folder, no server, and no key in what may be a kept log."""
    with serving(tmp_path / "var", "--no-worker", redis_url=redis_url, database_url=database_url) as running:
        parts = set(running.processes())
        before = httpx.get(f"{running.url}/readyz")
        environment = environment_with(REDIS_URL=redis_url, DATABASE_URL=database_url)
        subprocess.run([sys.executable, "-m", "app.cli", "keys", "create", "--name", "first"], env=environment, check=True)
        until(lambda: httpx.get(f"{running.url}/readyz").status_code == 200)

    assert parts == {"api"}
    assert (before.status_code, before.json()["checks"]["configuration"]) == (503, "bots and keys are not known yet")
    assert not (tmp_path / "var").exists()
    assert "curl" not in running.output
    assert "adjourn keys create" in running.output
