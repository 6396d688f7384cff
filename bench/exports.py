"""An export of closed sessions, killed once and resumed: `python -m bench.exports [channel=sms …]`, on what `bench.fill` made.

It prints the rate, the largest memory of the API process and of `adjourn export`, and whether a run that was killed and resumed
gives the same bytes as one that was not.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from app.delivery.secret_box import new_secrets_key

ADJOURN = (sys.executable, "-m", "app.cli")
KILLED_AT_BYTES = 50_000_000
POLL_S = 0.05


class Peak:
    """The largest memory of some processes, in MB."""

    def __init__(self) -> None:
        self.mb = 0.0

    def look(self, *processes: psutil.Process) -> None:
        self.mb = max(self.mb, *(each.memory_info().rss / 1e6 for each in processes))


@contextmanager
def api(folder: str) -> Iterator[tuple[str, str, psutil.Process]]:
    """A server with one API process on the database; gives its URL, a key that reads, and that process."""
    known = dict(os.environ, SECRETS_KEY=new_secrets_key(), VAR_DIR=folder, API_WORKERS="1")
    with subprocess.Popen([*ADJOURN, "serve", "--port", "0"], env=known, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://127[.0-9]+:\d+", line)))
            made = subprocess.run(
                [*ADJOURN, "keys", "create", "--name", "bench", "--scope", "read"],
                env=known,
                check=True,
                capture_output=True,
                text=True,
            )
            (key,) = re.findall(r"adj_[\w-]+", made.stdout)
            with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
                while not client.get("/v1/sessions?limit=1").is_success:
                    time.sleep(POLL_S)
                (process,) = [
                    one for one in psutil.Process(server.pid).children(recursive=True) if _serves(one, client.base_url.port)
                ]
            yield url, key, process
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _serves(process: psutil.Process, port: int | None) -> bool:
    """Whether the connection that is open to this port is the process's: all processes of a server have one command line."""
    return any(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))


def export(output: Path, *more: str, url: str, key: str, watched: psutil.Process, peaks: tuple[Peak, Peak], kill: bool) -> float:
    """Run the command, until it has written so much if it is to be killed; gives the time that it took, in s."""
    began = time.perf_counter()
    where = [part for each in sys.argv[1:] for part in ("--where", each)]
    command = [*ADJOURN, "export", "sessions", str(output), "--url", url, "--key", key, *where, *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        own = psutil.Process(running.pid)
        while running.poll() is None:
            peaks[0].look(watched)
            if own.status() != psutil.STATUS_ZOMBIE:
                peaks[1].look(own)
            if kill and output.exists() and output.stat().st_size >= KILLED_AT_BYTES:
                running.kill()
            time.sleep(POLL_S)
    assert kill or running.returncode == 0
    return time.perf_counter() - began


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    peaks = Peak(), Peak()
    with tempfile.TemporaryDirectory(prefix="adj-") as folder, api(folder) as (url, key, process):
        whole, cut = Path(folder) / "whole.ndjson", Path(folder) / "cut.ndjson"
        took_s = export(whole, url=url, key=key, watched=process, peaks=peaks, kill=False)
        export(cut, url=url, key=key, watched=process, peaks=peaks, kill=True)
        killed_at = cut.stat().st_size
        export(cut, "--resume", url=url, key=key, watched=process, peaks=peaks, kill=False)
        with whole.open("rb") as file:
            rows = sum(1 for _ in file)
        print(f"{rows:,} sessions, {whole.stat().st_size / 1e6:,.0f} MB, {rows / took_s:,.0f} a second")
        print(f"peak memory: API process {peaks[0].mb:,.0f} MB, adjourn export {peaks[1].mb:,.0f} MB")
        print(f"killed at {killed_at / 1e6:,.0f} MB and resumed: {'the same' if digest(whole) == digest(cut) else 'OTHER'} bytes")


if __name__ == "__main__":
    main()
