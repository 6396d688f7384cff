"""Scripts on a full Redis: an old one, which has no flags, and a newer one."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from app.embedded import embedded_servers
from app.live.lua import LuaScript, RedisFull
from app.live.pipe import Pipe

ENLARGE = b"return redis.call('SET', KEYS[1], ARGV[1])"
FREE_AND_ENLARGE = b"redis.call('HDEL', KEYS[1] .. ':none', '') " + ENLARGE


@pytest.fixture(params=("older", "bundled"))
def server(request: pytest.FixtureRequest) -> str:
    """Redis 6.2 or the Valkey of the extra."""
    if request.param == "older":
        request.getfixturevalue("older_redis")
    return str(request.param)


@pytest.fixture
async def redis(server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Redis]:
    """A Redis of the test's own, old or new."""
    folder = tmp_path_factory.mktemp(server)
    with embedded_servers(folder, redis=True, postgres=False, durable=False) as servers:
        assert servers.redis_url is not None
        client = Redis.from_url(servers.redis_url, protocol=2)
        yield client
        await client.aclose()


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[Pipe]:
    made = Pipe(redis, timeout_s=5)
    yield made
    await made.stop()


async def fill(redis: Redis) -> None:
    await redis.config_set("maxmemory", 1)


async def test_what_frees_first_goes_on_when_full(server: str, redis: Redis, pipe: Pipe) -> None:
    """With flags or without: a server that does not know them is asked once, and from then on as it can be asked."""
    await fill(redis)
    script = LuaScript(FREE_AND_ENLARGE, when_full=True)

    for value in ("one", "two"):
        await script.call(pipe, ["a"], value)

    assert await redis.get("a") == b"two"
    sent_whole = (await redis.info("commandstats"))["cmdstat_eval"]["calls"]
    assert sent_whole == {"older": 2, "bundled": 1}[server]  # once refused for its first line


async def test_flags_are_used_where_they_are_known(server: str, redis: Redis, pipe: Pipe) -> None:
    """There a write that enlarges memory may come first."""
    await fill(redis)
    if server == "older":
        with pytest.raises(RedisFull):
            await LuaScript(ENLARGE, when_full=True).call(pipe, ["a"], "one")
    else:
        await LuaScript(ENLARGE, when_full=True).call(pipe, ["a"], "one")
        assert await redis.get("a") == b"one"


async def test_the_others_are_refused_when_full(redis: Redis, pipe: Pipe) -> None:
    """However the server says that it is full."""
    await fill(redis)

    with pytest.raises(RedisFull):
        await LuaScript(ENLARGE).call(pipe, ["a"], "one")

    assert await redis.get("a") is None


async def test_an_error_in_a_script_is_raised(pipe: Pipe) -> None:
    with pytest.raises(ResponseError, match="compiling"):
        await LuaScript(b"return )", when_full=True).call(pipe, ["a"])
