"""Counts a bot's archived sessions as each of the four systems does and as its own policy does, by `decide`, side by side.

Bounded: more than `MOST_MESSAGES` messages are refused, and other requests are served between the slices of the work.
"""

import asyncio
from typing import Any

from msgspec import structs
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive import analytics
from app.archive.session_reads import SessionFilter
from app.domain.comparison import Difference, Line, Rerun, differences, totals
from app.domain.errors import Fault
from app.domain.policy.model import Policy
from app.domain.policy.parse import policy_from
from app.domain.transcript import entry_from
from app.errors import Invalid

VENDORS = ("kore", "botanalytics", "reamaze", "aivo")
"""The presets that stand for the four systems."""

MOST_MESSAGES = 20_000
_SLICE = 100  # decisions; about a millisecond


async def compare(engine: AsyncEngine, bot: str, wanted: SessionFilter, *, policy: Policy) -> dict[str, Any]:
    """The count of each definition, the bot's own first. Raises `Invalid` if there are too many messages."""
    async with engine.connect() as conn:
        found = await analytics.history(conn, wanted, limit=MOST_MESSAGES + 1)
    if len(found) > MOST_MESSAGES:
        fault = Fault("to", f"the sessions have more than {MOST_MESSAGES} messages", "ask for a shorter period")
        raise Invalid("there is too much to count again", faults=(fault,))
    history = [_line(number, one) for number, one in enumerate(found)]
    ours = await _rerun(bot, policy, history)
    theirs = {name: await _rerun(bot, policy_from({"preset": name}), history) for name in VENDORS}
    return {
        "messages": len(history),
        "definitions": [_view("own", ours, ours), *(_view(name, rerun, ours) for name, rerun in theirs.items())],
    }


def _line(number: int, one: analytics.HistoryLine) -> Line:
    entry = entry_from(one.message, channel=one.channel, conversation_id=one.conversation_id)
    return Line(number, one.message.received_at_ms, entry)


async def _rerun(bot: str, policy: Policy, history: list[Line]) -> Rerun:
    made = Rerun(bot, policy)
    for number, line in enumerate(history):
        made.feed(line)
        if number % _SLICE == 0:
            await asyncio.sleep(0)
    return made


def _view(name: str, theirs: Rerun, ours: Rerun) -> dict[str, Any]:
    counted = totals(theirs.sessions())
    contained = structs.asdict(counted.contained) | {"percent": counted.contained.percent}
    found = differences(theirs, ours)
    return {
        "definition": name,
        **structs.asdict(counted),
        "contained": contained,
        "refused_entries": theirs.refused,
        "difference": sum(each.more - each.fewer for each in found),
        "reasons": [_reason(each) for each in found],
    }


def _reason(each: Difference) -> dict[str, Any]:
    settings = {name: {"theirs": theirs, "own": own} for name, (theirs, own) in each.settings.items()}
    return {"reason": each.reason, "channel": each.channel, "more": each.more, "fewer": each.fewer, "settings": settings}
