"""The command line: reads arguments, calls what does the work, and tells failure in one line and a non-zero exit."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pydantic
import typer
import uvloop

from app.errors import AdjournError, CannotStart
from app.log import configure_logging
from app.settings import Settings

app = typer.Typer(
    name="adjourn",
    help="Real-time session tracking for chatbots. Settings come from the environment; .env.example lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Part(StrEnum):
    API = "api"
    WORKER = "worker"


keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@app.command()
def serve(
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="API processes. [API_WORKERS, 1]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [PORT, 8000]")] = None,
    var_dir: Annotated[Path | None, typer.Option(help="Folder of the embedded servers' data. [VAR_DIR, var]")] = None,
    worker: Annotated[bool, typer.Option(help="Run a worker too.")] = True,
) -> None:
    """Run the API and a worker, with a Redis and a Postgres of their own where no URL is set."""
    from app.supervisor.serve import serve as run

    chosen = {"api_workers": workers, "host": host, "port": port, "var_dir": var_dir}
    settings = _settings(process_name="serve", **{name: value for name, value in chosen.items() if value is not None})
    run(settings, with_worker=worker)


@app.command()
def worker() -> None:
    """Close, archive and deliver until told to stop. Any number may run at once."""
    from app.worker import run

    settings = _settings()
    _need_servers(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signal(run(settings)))


@app.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL to this version."""
    from app.archive import migrate as migrations
    from app.supervisor.preflight import check_servers

    url = _settings().database_url
    if url is None:
        msg = "DATABASE_URL is not set; `adjourn serve` migrates its own Postgres"
        raise CannotStart(msg)
    asyncio.run(check_servers(database_url=url))
    migrations.upgrade(url)
    print(f"schema is at version {migrations.newest_version()}")


@app.command()
def check(part: Annotated[Part, typer.Argument(help="What to ask.")]) -> None:
    """Exit with 0 if this machine's API or worker does its work; for health checks."""
    from app.supervisor import health

    print((health.check_api if part is Part.API else health.check_worker)(_settings()))


@app.command(hidden=True)
def api(
    fd: Annotated[int, typer.Option(help="Listening socket, inherited.")],
    ready_fd: Annotated[int | None, typer.Option(help="Written to once requests are answered.")] = None,
) -> None:
    """Serve the API on a socket of `adjourn serve`."""
    from app.supervisor.api import run_api

    settings = _settings()
    _need_servers(settings)
    run_api(settings, descriptor=fd, ready=ready_fd)


def _settings(**chosen: object) -> Settings:
    """Read the settings, and set up this process's log."""
    try:
        settings = Settings.load(**chosen)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        msg = f"setting {str(first['loc'][0]).upper()}: {first['msg']}"
        raise CannotStart(msg) from None
    configure_logging(settings)
    return settings


def _need_servers(settings: Settings) -> None:
    """Say in one line that Redis is away. Postgres may be: entries are taken and sessions closed without it."""
    from app.supervisor.preflight import check_servers

    if settings.redis_url is None or settings.database_url is None:
        msg = "REDIS_URL and DATABASE_URL are not set; `adjourn serve` starts servers of its own"
        raise CannotStart(msg)
    asyncio.run(check_servers(redis_url=settings.redis_url))


async def _until_signal(work: Coroutine[None, None, None]) -> None:
    """Do it until it ends, or cancel it at SIGINT or SIGTERM and wait until it has finished what it must."""
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def main() -> None:
    """Run the command line; the entry point `adjourn`."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except AdjournError as error:
        _fail(error.detail)
    except CannotStart as error:
        _fail(str(error))


def _fail(reason: str) -> None:
    print(f"adjourn: {reason}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
