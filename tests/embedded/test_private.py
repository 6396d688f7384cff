"""The embedded servers give nothing to other users of the machine, whoever starts them."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis

from app.embedded import Servers, account, embedded_servers, redis_server
from app.embedded.account import open_var, socket_folder
from app.errors import CannotStart

STRANGER = 65533  # a user id that nothing on this machine has
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def var_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        Path(folder).chmod(0o755)  # the folders below must hold by themselves
        yield Path(folder) / "var"


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        Path(folder).chmod(0o755)
        with embedded_servers(Path(folder) / "var", redis=True, postgres=True, durable=False) as servers:
            yield servers


def _as(uid: int, act: Callable[[], object]) -> str:
    """Do something in a child with this user's rights; the name of the exception, or what it returned."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            answer = str(act())
        except BaseException as error:  # noqa: BLE001 - the child must not go on with the test run
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode()[:4000])
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as answer_of_child:
        return answer_of_child.read()


def _connect(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
    return "connected"


async def _query(sockets: Path, user: str) -> int:
    connection = await asyncpg.connect(user=user, database="postgres", host=str(sockets), timeout=5)
    try:
        return int(await connection.fetchval("SELECT 1"))
    finally:
        await connection.close()


def _server_processes(servers: Servers) -> list[psutil.Process]:
    leaders = [psutil.Process(pid) for pid in (servers.redis_pid, servers.postgres_pid)]
    return [each for leader in leaders for each in (leader, *leader.children(recursive=True))]


@as_root
def test_another_user_reaches_neither_data_nor_sockets(running: Servers) -> None:
    """Every path below `var/` is closed to a stranger and to the user that daemons share, and no file in it is open to others."""
    assert running.redis is not None
    assert running.postgres is not None

    closed = [running.redis.data_dir, running.postgres.data_dir, running.redis.log_path]
    for uid in (STRANGER, pwd.getpwnam("nobody").pw_uid):
        for path in closed:
            assert _as(uid, lambda path=path: path.stat()).startswith("PermissionError")  # type: ignore[misc]
        for path in (running.redis.socket_path, running.postgres.socket_path):
            assert _as(uid, lambda path=path: _connect(path)).startswith("PermissionError")  # type: ignore[misc]
    assert running.redis.data_dir.parent.stat().st_mode & 0o777 == 0o700


@as_root
def test_the_servers_of_root_have_no_rights(running: Servers) -> None:
    """Every process of theirs runs as an account that nothing else uses, without capabilities, and cannot gain any."""
    processes = _server_processes(running)
    others = {process.uids().real for process in psutil.process_iter() if process not in processes and process.is_running()}

    assert len(processes) > 4
    for process in processes:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Groups"].strip() == ""
        names = {pwd.getpwuid(uid).pw_name for uid in process.uids()}
        assert names in ({"bin"}, {"adjourn"})
        assert not set(process.uids()) & (others - {process.uids().real})


@as_root
def test_a_database_user_is_not_believed_but_looked_up(running: Servers) -> None:
    """Were the sockets open to all, Postgres would still let in no one but the user who started it."""
    assert running.postgres is not None

    sockets = running.postgres.sockets
    opened = [sockets.parents[0], sockets, running.postgres.socket_path]
    modes = [path.stat().st_mode & 0o777 for path in opened]
    try:
        for path in opened:
            path.chmod(0o777)
        answers = [_as(uid, lambda: asyncio.run(_query(sockets, "postgres"))) for uid in (STRANGER, 65534)]
    finally:
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode)

    for answer in answers:
        assert answer.startswith("InvalidAuthorizationSpecificationError"), answer
    assert asyncio.run(_query(sockets, "postgres")) == 1


@as_root
def test_an_old_folder_that_trusted_everybody_is_closed(var_dir: Path) -> None:
    """A folder as older versions left it: open to be listed, owned by the overflow user, Postgres with `trust`, Redis root's."""
    with embedded_servers(var_dir, redis=True, postgres=True, durable=False) as servers:
        assert servers.redis_url is not None
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set("kept", "yes")
    (var_dir / "postgres" / "pg_hba.conf").write_text("local all all trust\n")
    for path in (var_dir / "postgres", *(var_dir / "postgres").rglob("*")):
        os.chown(path, 65534, 65534)
    for path in (var_dir / "redis", *(var_dir / "redis").rglob("*")):
        os.chown(path, 0, 0)
    var_dir.chmod(0o755)
    with embedded_servers(var_dir, redis=True, postgres=True, durable=False) as servers:
        assert servers.redis_url is not None
        assert servers.postgres is not None
        with redis.Redis.from_url(servers.redis_url) as client:
            kept = client.get("kept")
        answered = asyncio.run(_query(servers.postgres.sockets, "postgres"))
        owners = {path.lstat().st_uid for name in ("redis", "postgres") for path in (var_dir / name).rglob("*")}

    assert (kept, answered) == (b"yes", 1)
    assert owners == {account.server_account().uid}  # type: ignore[union-attr]
    assert "trust" not in (var_dir / "postgres" / "pg_hba.conf").read_text()
    assert stat.S_IMODE(var_dir.stat().st_mode) == 0o700


@as_root
@pytest.mark.parametrize("place", ("var", "run"))
def test_a_folder_of_another_user_is_not_followed(var_dir: Path, place: str) -> None:
    """It may hold sockets and data of that user's making."""
    folder = var_dir if place == "var" else var_dir / "run"
    folder.mkdir(parents=True)
    os.chown(folder, STRANGER, STRANGER)

    with pytest.raises(CannotStart, match=rf"{folder} belongs to another user \(uid {STRANGER}\)"):
        _start(var_dir)
    assert folder.stat().st_uid == STRANGER


def test_a_folder_that_others_may_have_filled_is_refused(var_dir: Path) -> None:
    """Group or world could have written there; its mode stays as it was, so that the next start refuses it, too."""
    (var_dir / "redis").mkdir(parents=True)
    for mode in (0o777, 0o770):
        var_dir.chmod(mode)
        for _ in range(2):
            with pytest.raises(CannotStart, match="can be written by other users"):
                _start(var_dir)

        assert stat.S_IMODE(var_dir.stat().st_mode) == mode


def test_a_shared_folder_is_never_closed_to_its_users(var_dir: Path) -> None:
    """`VAR_DIR=/tmp`, even empty, or a folder of other things is refused as it is."""
    var_dir.mkdir()
    var_dir.chmod(0o1777)
    with pytest.raises(CannotStart, match="can be written by other users"):
        open_var(var_dir)
    assert stat.S_IMODE(var_dir.stat().st_mode) == 0o1777

    var_dir.chmod(0o755)
    (var_dir / "thesis.txt").touch()
    with pytest.raises(CannotStart, match=r"VAR_DIR .+ holds other things \(thesis\.txt\)"):
        open_var(var_dir)
    assert stat.S_IMODE(var_dir.stat().st_mode) == 0o755


def test_a_link_in_the_place_of_the_sockets_is_not_followed(var_dir: Path, tmp_path: Path) -> None:
    """Where `var/` has a long path, the sockets lie under the temporary folder, where any user may be first."""
    deep = var_dir / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    folder = socket_folder(deep, account=None)
    folder.rmdir()
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    folder.symlink_to(target)
    try:
        with pytest.raises(CannotStart, match="is not a folder of this user's"):
            _start(deep)
        assert stat.S_IMODE(target.stat().st_mode) == 0o755
        assert list(target.iterdir()) == []
    finally:
        folder.unlink()


def test_redis_has_a_memory_bound(running: Servers, var_dir: Path) -> None:
    """Half of the memory unless set; a full Redis refuses entries, and nothing is ever evicted."""
    assert running.redis_url is not None

    with redis.Redis.from_url(running.redis_url) as client:
        bound = int(client.config_get("maxmemory")["maxmemory"])
    with embedded_servers(var_dir, redis=True, postgres=False, durable=False, redis_max_memory_mb=64) as servers:
        assert servers.redis_url is not None
        with redis.Redis.from_url(servers.redis_url) as client:
            chosen = int(client.config_get("maxmemory")["maxmemory"])

    assert 0 < bound <= psutil.virtual_memory().total // 2 * 1.05
    assert bound == redis_server.default_max_memory_mb() * 1024 * 1024
    assert chosen == 64 * 1024 * 1024


@pytest.mark.parametrize(("limit", "expected"), (("max\n", None), ("536870912\n", 256)))
def test_the_memory_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    """Its limit, where it has one below the machine's memory."""
    file = tmp_path / "memory.max"
    file.write_text(limit)
    monkeypatch.setattr(redis_server, "_CGROUP_LIMIT", file)
    machine = psutil.virtual_memory().total // 2 // 1024**2

    assert abs(redis_server.default_max_memory_mb() - (expected or machine)) <= 1


@as_root
def test_programs_under_a_closed_folder_run_from_a_copy(var_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment below `/root` is closed to the servers' account; root keeps equal programs for it, and takes them again."""
    with tempfile.TemporaryDirectory(prefix="adj-") as open_folder:
        Path(open_folder).chmod(0o755)
        cache = Path(open_folder) / "cache"
        monkeypatch.setattr(account, "PROGRAM_CACHE", cache)
        monkeypatch.setattr(account, "_open_to_all", lambda _: False)
        programs: set[str] = set()
        for _ in range(2):
            with embedded_servers(var_dir, redis=True, postgres=True, durable=False) as servers:
                programs |= {process.exe() for process in _server_processes(servers)}
        copies = sorted(path.name.rpartition("-")[0] for path in cache.iterdir())

    assert all(program.startswith(f"{cache}/") for program in programs)
    assert len(copies) == 2
    assert not any(_foreign(path) for path in cache.rglob("*"))


def _foreign(path: Path) -> bool:
    status = path.lstat()
    return status.st_uid != os.geteuid() or bool(status.st_mode & stat.S_IWOTH and not path.is_symlink())


@as_root
def test_an_ordinary_user_runs_the_servers_as_itself() -> None:
    """No account is changed, and paths are named as they are."""
    user = pwd.getpwnam("games")
    binary = redis_server.server_binary()
    if not account._open_to_all(binary):
        pytest.skip("this environment is closed to other users")
    with tempfile.TemporaryDirectory(prefix="adj-") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)

        def use() -> object:
            with embedded_servers(Path(folder) / "var", redis=True, postgres=True, durable=False) as servers:
                assert servers.postgres is not None
                owners = {uid for process in _server_processes(servers) for uid in process.uids()}
                return owners, asyncio.run(_query(servers.postgres.sockets, "postgres"))

        answer = _as(user.pw_uid, use)

    assert answer == f"({{{user.pw_uid}}}, 1)"


def _start(var_dir: Path) -> None:
    with embedded_servers(var_dir, redis=True, postgres=False, durable=False):
        pytest.fail("started")
