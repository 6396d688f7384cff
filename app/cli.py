"""The command line: each command reads its arguments and calls the part that does the work.

A failure is one line on stderr and a non-zero exit code. Imports of the parts stand in the commands, so that `--help` is fast.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import pydantic
import typer
import uvloop

from app.embedded.account import name_process
from app.errors import AdjournError, CannotStart
from app.log import configure_logging
from app.settings import ENV_FILE, SECRETS_KEY_FILE, Settings, environment_with, replace_environment

if TYPE_CHECKING:
    from app.config.change import Keyring

T = TypeVar("T")
_WIDE = 200  # columns of a table that goes to a file or a pipe, so that its lines are not folded

app = typer.Typer(
    name="adjourn",
    help="Real-time session tracking for chatbots. Settings come from the environment; .env.example lists them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class HealthTarget(StrEnum):
    API = "api"
    WORKER = "worker"


keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
secrets = typer.Typer(help="Keys that encrypt the secrets of endpoints.", no_args_is_help=True)
app.add_typer(secrets, name="secrets")


stats = typer.Typer(help="Rebuild and verify the hours that charts are made from.", no_args_is_help=True)
app.add_typer(stats, name="stats")


@app.command()
def serve(
    workers: Annotated[int | None, typer.Option(min=1, max=64, help="API processes. [API_WORKERS, 1]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [HOST, 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [PORT, 8000]")] = None,
    var_dir: Annotated[Path | None, typer.Option(help="Folder of the embedded servers' data. [VAR_DIR, var]")] = None,
    worker: Annotated[bool, typer.Option(help="Run a worker too.")] = True,
) -> None:
    """Run the API and a worker, with an embedded Redis and Postgres where no URL is set."""
    chosen = {"api_workers": workers, "host": host, "port": port, "var_dir": var_dir}
    settings = _settings(process_name="serve", **{name: value for name, value in chosen.items() if value is not None})
    with TemporaryDirectory(prefix="adjourn-metrics-") as metrics_dir:
        # The library of the metrics reads it when it is imported, and forks have it imported.
        replace_environment(environment_with(prometheus_multiproc_dir=metrics_dir))
        from app.supervisor.serve import serve as run

        run(settings, metrics_dir=Path(metrics_dir), with_worker=worker, main=main)


@app.command()
def worker() -> None:
    """Close, archive and deliver until stopped. Any number may run at once."""
    from prometheus_client import start_http_server

    from app.worker import run

    name_process("adjourn worker")
    settings = _settings()
    _need_servers(settings)
    if settings.worker_metrics_port is not None:
        start_http_server(settings.worker_metrics_port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_until_signal(run(settings)))


@app.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL to this version."""
    from app.archive.engine import newest_schema_version
    from app.delivery.secret_box import SecretBox
    from app.supervisor.preflight import check_servers, upgrade_schema

    settings, url = _settings(), _database_url()
    admin_key = settings.admin_key
    asyncio.run(check_servers(database_url=url))
    upgrade_schema(url, SecretBox.of(settings))
    print(f"schema is at version {newest_schema_version()}")
    if admin_key is not None:
        saved = _with_keys(lambda keyring: keyring.ensure(admin_key))
        print(f"the key of ADJOURN_ADMIN_KEY is {'saved' if saved else 'known'}")


@app.command()
def check(part: Annotated[HealthTarget, typer.Argument(help="The part to check.")]) -> None:
    """Exit with 0 if this machine's API or worker works; for health checks."""
    from app.supervisor.processes import check_api, check_worker

    print((check_api if part is HealthTarget.API else check_worker)(_settings()))


@app.command()
def replay(
    file: Annotated[str, typer.Argument(help="Entries as JSON, one a line, gzipped or not; - is standard input.")],
    bot: Annotated[str, typer.Option(help="The bot whose entries they are.")],
    url: Annotated[str, typer.Option(help="URL of the API.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="ADJOURN_KEY", help="API key with the scope ingest.")] = None,
    speed: Annotated[float, typer.Option(min=0, help="Times real time, by the entries' sent_at; 0 is at once.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=500, help="Most entries in one request.")] = 500,
) -> None:
    """Post a file of entries and report the answers. Exits with 1 if any entry was refused."""
    from app.replay import run

    sys.exit(run(file, bot=bot, url=url, key=key, speed=speed, most=batch))


class Exported(StrEnum):
    SESSIONS = "sessions"
    MESSAGES = "messages"


class ExportFormat(StrEnum):
    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"


@app.command()
def export(
    kind: Annotated[Exported, typer.Argument(help="Rows to export.")],
    output: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[
        ExportFormat, typer.Option("--format", help="One row a line, as CSV or JSON, or a Parquet file.")
    ] = ExportFormat.NDJSON,
    where: Annotated[list[str] | None, typer.Option(help="Filter of GET /v1/sessions, such as bot=shop. Repeatable.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a file that was cut.")] = False,
    url: Annotated[str, typer.Option(help="URL of the API.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(envvar="ADJOURN_KEY", help="API key with the scope read.")] = None,
) -> None:
    """Write closed sessions or their messages to a file."""
    from app.export import Export, run

    filters = dict(part.partition("=")[::2] for part in where or [])
    run(Export(kind.value, form.value, filters), output, url=url, key=key, resume=resume)


@app.command()
def demo(
    stay: Annotated[
        bool, typer.Option("--stay", help="Then let users come and go until Ctrl-C, to look at the console.")
    ] = False,
) -> None:
    """Play a day of traffic through a whole system, and compare the result with the script. Exits with 1 if they differ."""
    from app.demo.command import run

    sys.exit(run(stay=stay))


@app.command(hidden=True)
def api(
    fd: Annotated[int, typer.Option(help="Listening socket, inherited.")],
    operations_fd: Annotated[int | None, typer.Option(help="Listening socket of OPERATIONS_PORT, inherited.")] = None,
    ready_fd: Annotated[int | None, typer.Option(help="Written to once requests are answered.")] = None,
) -> None:
    """Serve the API on a socket of `adjourn serve`."""
    from app.supervisor.api import run_api

    name_process("adjourn api")
    settings = _settings()
    _need_servers(settings)
    run_api(settings, descriptors=[each for each in (fd, operations_fd) if each is not None], ready=ready_fd)


class Scope(StrEnum):
    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="Name in lists.")],
    scope: Annotated[list[Scope] | None, typer.Option(help="May be repeated. [all]")] = None,
    bot: Annotated[list[str] | None, typer.Option(help="May be repeated. [all bots]")] = None,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    scopes = [each.value for each in scope or Scope]
    print(_with_keys(lambda keyring: keyring.create(name, scopes=scopes, for_bots=bot or [])))


@stats.command()
def rebuild() -> None:
    """Roll up all sessions again. It may run while everything else does; a run that was cut is repeated."""
    from rich.console import Console

    from app.stats import rebuild

    print(f"{asyncio.run(rebuild(_database_url(), Console())):,} hours rolled up")


@stats.command()
def verify() -> None:
    """Compare every hour with its sessions. Exits with 1 if one is wrong."""
    from rich.console import Console

    from app.stats import verify

    wrong = asyncio.run(verify(_database_url(), Console()))
    for bot, hour in wrong:
        print(f"wrong: {bot} {hour:%Y-%m-%dT%H:%MZ}")
    print("every hour is right" if not wrong else f"{len(wrong)} hours are wrong: run `adjourn stats rebuild`")
    if wrong:
        raise typer.Exit(1)


@keys.command("list")
def list_() -> None:
    """Show every key: id, beginning, name, scopes, bots, times of creation and revocation."""
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "key", "name", "scopes", "bots", "made", "last used", "expires", "revoked", box=None)
    for row in _with_keys(lambda keyring: keyring.rows()):
        table.add_row(str(row.id), f"{row.prefix}…", row.name, ",".join(row.scopes), ",".join(row.bots or ["all"]),
                      *map(_minute, (row.created_at, row.last_used_at, row.expires_at, row.revoked_at)))  # fmt: skip
    Console(width=None if sys.stdout.isatty() else _WIDE).print(table)


@keys.command()
def revoke(
    key_id: Annotated[UUID, typer.Argument(help="The id that `adjourn keys list` shows.")],
    *,
    created: Annotated[bool, typer.Option("--created", help="Revoke the keys that it created, too.")] = False,
) -> None:
    """Revoke a key; every process refuses it within two seconds."""
    if not _with_keys(lambda keyring: keyring.revoke(str(key_id), created=created)):
        msg = f"there is no valid key with the id {key_id}"
        raise CannotStart(msg)
    print(f"revoked {key_id}")


@secrets.command("new-key")
def new_secrets_key_() -> None:
    """Print a new key for SECRETS_KEY."""
    from app.delivery.secret_box import new_secrets_key

    print(new_secrets_key())


@secrets.command("rotate")
def rotate_secrets_() -> None:
    """Encrypt the secrets of all endpoints with the first key of SECRETS_KEY; then the other keys can be removed."""
    from app.delivery.secret_box import SecretBox, rotate_secrets

    settings = _settings()
    _, database_url = _urls(settings)
    if settings.database_url is None and not settings.secret_keys:
        settings = _settings(secrets_key_file=settings.var_dir / SECRETS_KEY_FILE)
    try:
        endpoints = asyncio.run(rotate_secrets(database_url, SecretBox.of(settings)))
    except ValueError as error:
        raise CannotStart(str(error)) from None
    print(f"{endpoints} endpoints have secrets encrypted with the first key")


def _minute(instant: datetime | None) -> str:
    return "" if instant is None else f"{instant:%Y-%m-%d %H:%M}"


def _database_url() -> str:
    url = _settings().database_url
    if url is None:
        msg = "DATABASE_URL is not set; `adjourn serve` takes care of its own Postgres"
        raise CannotStart(msg)
    return url


def _with_keys(use: Callable[[Keyring], Awaitable[T]]) -> T:
    """Use the keyring of DATABASE_URL, or of the `adjourn serve` that runs on VAR_DIR."""
    from app.config.change import open_keyring
    from app.supervisor.preflight import check_servers

    redis_url, database_url = _urls(_settings())

    async def work() -> T:
        await check_servers(database_url=database_url)
        async with open_keyring(database_url=database_url, redis_url=redis_url) as keyring:
            return await use(keyring)

    return asyncio.run(work())


def _urls(settings: Settings) -> tuple[str | None, str]:
    """The URLs of Redis and Postgres; without DATABASE_URL those of the `adjourn serve` that runs on VAR_DIR."""
    from app.embedded import urls_of

    if settings.database_url is not None:
        return settings.redis_url, settings.database_url
    return urls_of(settings.var_dir)


def _settings(**chosen: object) -> Settings:
    """Read the settings and configure the log of this process."""
    try:
        settings = Settings.load(**chosen)
    except pydantic.ValidationError as error:
        faults = (
            f"setting {str(each['loc'][0]).upper()}: {each['msg'].removeprefix('Value error, ')}" for each in error.errors()
        )
        raise CannotStart("; ".join(dict.fromkeys(faults))) from None
    except (UnicodeDecodeError, OSError) as error:
        msg = f"{ENV_FILE} cannot be read ({error}): write it in UTF-8, and let this user read it"
        raise CannotStart(msg) from None
    configure_logging(settings)
    return settings


def _need_servers(settings: Settings) -> None:
    """Fail early if Redis is down. Postgres may be: entries are accepted and sessions closed without it."""
    from app.supervisor.preflight import check_servers

    if settings.redis_url is None or settings.database_url is None:
        msg = "REDIS_URL and DATABASE_URL are not set; `adjourn serve` starts servers of its own"
        raise CannotStart(msg)
    asyncio.run(check_servers(redis_url=settings.redis_url))


async def _until_signal(work: Coroutine[None, None, None]) -> None:
    """Run it until it ends, or cancel it at SIGINT or SIGTERM and wait for its clean-up."""
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
