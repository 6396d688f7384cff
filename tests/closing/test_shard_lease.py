"""Workers share the shards; a silent one's are covered by the others."""

from app.live import keys
from app.live.due import ShardLease
from app.resources import Resources

LEASE_MS = 5_000
NOW_MS = 1_700_000_000_000


def share_of(resources: Resources, worker: str) -> ShardLease:
    return ShardLease(pipe=resources.pipe, shards=16, worker=worker, lease_ms=LEASE_MS)


async def test_each_shard_has_one_of_those_who_are_alive(resources: Resources) -> None:
    """All shards are covered, none by two, and the parts are even."""
    shares = [share_of(resources, f"w{number}") for number in range(3)]
    for share in shares:
        await share.heartbeat(NOW_MS)

    parts = [await share.shards(NOW_MS) for share in shares]

    assert sorted(shard for part in parts for shard in part) == list(range(16))
    assert sorted(len(part) for part in parts) == [5, 5, 6]


async def test_worker_alone_covers_everything_before_it_ever_ticked(resources: Resources) -> None:
    """Nothing waits for the first tick."""
    assert await share_of(resources, "new").shards(NOW_MS) == list(range(16))


async def test_silent_workers_shards_are_covered_when_its_lease_ends(resources: Resources) -> None:
    """Not a moment before it, or two would always do the work of one."""
    dead, alive = share_of(resources, "a"), share_of(resources, "b")
    await dead.heartbeat(NOW_MS)
    await alive.heartbeat(NOW_MS + LEASE_MS - 1)

    parts = [len(await alive.shards(at_ms)) for at_ms in (NOW_MS + LEASE_MS - 1, NOW_MS + LEASE_MS)]

    assert parts == [8, 16]


async def test_stopping_worker_hands_its_shards_over_at_once(resources: Resources) -> None:
    """A rolling restart delays no close."""
    going, staying = share_of(resources, "a"), share_of(resources, "b")
    await going.heartbeat(NOW_MS)
    await staying.heartbeat(NOW_MS)

    await going.release()

    assert len(await staying.shards(NOW_MS)) == 16


async def test_long_silent_workers_are_forgotten(resources: Resources) -> None:
    """Names do not pile up over restarts."""
    await share_of(resources, "old").heartbeat(NOW_MS)
    await share_of(resources, "new").heartbeat(NOW_MS + 2 * 3_600_000)

    assert await resources.redis.hkeys(keys.HEARTBEATS) == [b"new"]
