"""Which strands are due, read from the sorted sets; deciding what that means is not its business."""

from collections.abc import Sequence

from app.domain.strand import Strand
from app.live import keys
from app.live.pipe import Pipe


async def due(pipe: Pipe, *, shards: Sequence[int], now_ms: int, bot: str | None, limit: int) -> list[Strand]:
    """Strands whose time has come, at most `limit` of a shard; `bot` for one with a time of its own."""
    calls = [("ZRANGEBYSCORE", keys.due(shard, bot), "-inf", now_ms, "LIMIT", 0, limit) for shard in shards]
    replies = await pipe.call_all(calls)
    return [keys.strand_from(member.decode()) for reply in replies for member in reply]
