"""Sessions that tests have archived, and what is then in the archive and in the streams."""

from sqlalchemy import text

from app.domain.entry import Entry
from app.domain.records import Close, Receive
from app.domain.strand import Strand
from app.live import keys
from app.resources import Resources

STRAND = Strand("bot", "web:ann")


async def say(resources: Resources, *texts: str, strand: Strand = STRAND) -> str:
    """Say these in one session; gives its id."""
    user = strand.conversation.partition(":")[2]
    entries = [Entry(user_id=user, role="user", text=words, message_id=f"{user}-{words}") for words in texts]
    outcomes = [await resources.ledger.submit(strand, Receive(entry, entry.message_id or "")) for entry in entries]
    answer = outcomes[-1].answer
    assert answer is not None
    assert answer.session_id is not None
    return answer.session_id


async def close(resources: Resources, session: str, *, strand: Strand = STRAND) -> None:
    await resources.ledger.submit(strand, Close(session))


async def archived(resources: Resources) -> dict[str, list[str]]:
    """Session ids in Postgres, each with its messages in order."""
    statement = """SELECT s.id, array_agg(m.text ORDER BY m.sequence) FROM sessions s
                   LEFT JOIN messages m ON m.session_id = s.id GROUP BY s.id"""
    async with resources.engine.connect() as conn:
        return {str(session): texts for session, texts in await conn.execute(text(statement))}


async def waiting(resources: Resources) -> int:
    """Records in all streams."""
    return sum([await resources.redis.xlen(keys.events(shard)) for shard in range(resources.settings.shards)])
