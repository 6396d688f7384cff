"""Variables of a user, on a real Redis."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from app.domain.errors import InvalidVariable, StateTooLarge
from app.domain.instants import DAY_MS
from app.domain.records import SetVariable, Variable
from app.live import keys
from app.live.pipe import Pipe
from app.live.users import UserVariables

NOON_MS = 1_700_049_600_000


@pytest.fixture
async def variables(redis: Redis) -> AsyncIterator[UserVariables]:
    pipe = Pipe(redis, timeout_s=5)
    yield UserVariables(pipe)
    await pipe.stop()


async def test_a_variable_is_read_as_it_was_set(variables: UserVariables) -> None:
    """Of this user and this bot alone, whatever JSON it is."""
    value = {"size": 42, "names": ["é", None, True], "share": 0.5}
    await variables.put("shop", "ann", SetVariable("cart", value, DAY_MS), now_ms=NOON_MS)
    await variables.put("shop", "ann", SetVariable("a:b", 1), now_ms=NOON_MS)

    assert await variables.read("shop", "ann", now_ms=NOON_MS) == {
        "a:b": Variable(1, NOON_MS + 366 * DAY_MS),
        "cart": Variable(value, NOON_MS + DAY_MS),
    }
    assert await variables.read("shop", "bob", now_ms=NOON_MS) == {}
    assert await variables.read("help", "ann", now_ms=NOON_MS) == {}


async def test_a_ttl_is_over_at_its_end(variables: UserVariables, redis: Redis) -> None:
    """It counts from the write, is renewed by another, and an expired variable is deleted by the next write."""
    await variables.put("shop", "ann", SetVariable("cart", 1, 1_000), now_ms=NOON_MS)
    before, at_end = [await variables.read("shop", "ann", now_ms=NOON_MS + after) for after in (999, 1_000)]
    await variables.put("shop", "ann", SetVariable("other", 2), now_ms=NOON_MS + 1_000)

    assert (list(before), list(at_end)) == (["cart"], [])
    assert await redis.hkeys(keys.user_variables("shop", "ann")) == [b"other"]
    assert 365 * DAY_MS < await redis.pttl(keys.user_variables("shop", "ann")) <= 366 * DAY_MS


async def test_a_deleted_variable_is_not_read(variables: UserVariables) -> None:
    await variables.put("shop", "ann", SetVariable("cart", 1), now_ms=NOON_MS)
    await variables.delete("shop", "ann", "cart")
    await variables.delete("shop", "ann", "never set")

    assert await variables.read("shop", "ann", now_ms=NOON_MS) == {}


async def test_all_variables_of_a_user_share_their_room(variables: UserVariables) -> None:
    """64 KB together; one that is replaced or has expired takes none, and a refused one changes nothing."""
    text = "x" * 8_000
    for number in range(8):
        await variables.put("shop", "ann", SetVariable(f"v{number}", text, DAY_MS), now_ms=NOON_MS)
    await variables.put("shop", "ann", SetVariable("v0", text, DAY_MS), now_ms=NOON_MS)
    with pytest.raises(StateTooLarge):
        await variables.put("shop", "ann", SetVariable("v8", text), now_ms=NOON_MS)
    full = await variables.read("shop", "ann", now_ms=NOON_MS)
    await variables.put("shop", "ann", SetVariable("v8", text), now_ms=NOON_MS + DAY_MS)
    await variables.put("shop", "bob", SetVariable("v8", text), now_ms=NOON_MS)

    assert list(full) == [f"v{number}" for number in range(8)]
    assert list(await variables.read("shop", "ann", now_ms=NOON_MS + DAY_MS)) == ["v8"]


@pytest.mark.parametrize(
    "command",
    (
        SetVariable("", 1),
        SetVariable("x" * 129, 1),
        SetVariable("x", "y" * 8_192),
        SetVariable("x", float("nan")),
        SetVariable("x", 1, 0),
        SetVariable("x", 1, 366 * DAY_MS + 1),
    ),
    ids=repr,
)
async def test_a_variable_beyond_its_limits_is_refused(variables: UserVariables, command: SetVariable) -> None:
    """The limits are those of a conversation's variables."""
    with pytest.raises(InvalidVariable):
        await variables.put("shop", "ann", command, now_ms=NOON_MS)

    assert await variables.read("shop", "ann", now_ms=NOON_MS) == {}
