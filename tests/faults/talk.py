"""Traffic of bots under faults: each conversation posts one entry after the other, and each entry until it is acknowledged.

The log has what a bot knows: its entries in order, each with its receipt, and the number and duration of the tries.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from tests.faults.requests import Answered, Broken, Caller

PAUSE_S = 0.05


class Said(Struct, frozen=True):
    """An entry that was acknowledged. Instants `…_s` are of the harness's monotonic clock; `received_at_ms` is the product's."""

    bot: str
    user: str
    number: int
    message_id: str
    type: str
    received_at_ms: int
    receipt: dict[str, Any]
    began_s: float
    acknowledged_s: float
    tries: int = 1


class Log:
    """All that was said, and all that went wrong on the way."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.troubles: Counter[str] = Counter()
        self.refusals: list[str] = []
        self.reasons: Counter[str] = Counter()  # of the answers 503
        self.slowest_answer_s = 0.0

    def conversations(self) -> dict[tuple[str, str], list[Said]]:
        found: dict[tuple[str, str], list[Said]] = {}
        for said in sorted(self.said, key=lambda said: said.number):
            found.setdefault((said.bot, said.user), []).append(said)
        return found


class Talker:
    """Speaks for some users of a bot, one request at a time."""

    def __init__(self, caller: Caller, bot: str, log: Log, *, patience_s: float = 90) -> None:
        self._caller = caller
        self._bot = bot
        self._log = log
        self._patience_s = patience_s

    async def say(self, user: str, number: int, *, kind: str = "message", **fields: object) -> Said:
        """One entry, posted until it is acknowledged, always under the same message id."""
        (said,) = await self._until_taken([self._entry(user, number, kind, fields)], path="messages")
        return said

    async def say_all(self, users: Sequence[str], number: int, *, kind: str = "message", **fields: object) -> list[Said]:
        """An entry of each user in one batch."""
        return await self._until_taken([self._entry(user, number, kind, fields) for user in users], path="messages/batch")

    async def advance(self, *, seconds: float) -> str:
        """Move the bot's clock; gives where it stands."""
        stands = (await self._insist("GET", f"/v1/bots/{self._bot}/clock", b"")).body["now"]
        return await self.advance_to(ms_from(stands) + int(seconds * 1000))

    async def advance_to(self, to_ms: int) -> str:
        body = msgspec.json.encode({"to": rfc3339(to_ms)})
        # A repeat after a lost answer may find the clock there already, or further: a conflict, and done.
        answer = await self._insist("POST", f"/v1/bots/{self._bot}/clock/advance", body, fine=(200, 409))
        return str(answer.body.get("now", ""))

    def _entry(self, user: str, number: int, kind: str, fields: dict[str, object]) -> dict[str, Any]:
        message_id = f"{user}-{number}"
        role = "user" if kind == "message" else "system"
        return {"user_id": user, "role": role, "type": kind, "message_id": message_id} | fields

    async def _until_taken(self, entries: list[dict[str, Any]], *, path: str) -> list[Said]:
        began_s, done, waiting, tries = time.monotonic(), [], entries, 0
        while waiting:
            tries += 1
            single = path == "messages"
            body = msgspec.json.encode(waiting[0] if single else waiting)
            answer = await self._insist("POST", f"/v1/bots/{self._bot}/{path}", body)
            receipts = [answer.body] if single else answer.body["answers"]
            refused = []
            for entry, receipt in zip(waiting, receipts, strict=True):
                if "error" not in receipt:
                    done.append(self._said(entry, receipt, began_s=began_s, tries=tries))
                else:
                    self._trouble(receipt["error"]["status"], str(receipt["error"]))
                    refused.append(entry)
            waiting = refused
            if refused:
                await asyncio.sleep(PAUSE_S)
        self._log.said.extend(done)
        return done

    async def _insist(self, method: str, path: str, body: bytes, *, fine: tuple[int, ...] = (200,)) -> Answered:
        give_up = time.monotonic() + self._patience_s
        while True:
            began_s = time.monotonic()
            try:
                answer = await (self._caller.post(path, body) if method == "POST" else self._caller.get(path))
            except Broken as broken:
                self._log.troubles[str(broken).partition(":")[0]] += 1
            else:
                self._log.slowest_answer_s = max(self._log.slowest_answer_s, time.monotonic() - began_s)
                if answer.status in fine:
                    return answer
                self._trouble(answer.status, f"{path}: {answer.body}")
            assert time.monotonic() < give_up, f"no answer for {self._patience_s} s: {self._log.troubles}"
            await asyncio.sleep(PAUSE_S)

    def _trouble(self, status: int, words: str) -> None:
        self._log.troubles[str(status)] += 1
        if status == 503:
            self._log.reasons[words[-200:]] += 1
        else:
            self._log.refusals.append(words)

    def _said(self, entry: dict[str, Any], receipt: dict[str, Any], *, began_s: float, tries: int) -> Said:
        user, _, number = entry["message_id"].rpartition("-")
        at_ms = ms_from(receipt["received_at"])
        return Said(
            self._bot, user, int(number), entry["message_id"], entry["type"], at_ms, receipt, began_s, time.monotonic(), tries
        )


@asynccontextmanager
async def chatter(
    make_caller: Callable[[], Caller],
    bot: str,
    log: Log,
    *,
    talkers: int = 4,
    users: int = 10,
    ends: float = 0.05,
    signals: float = 0.1,
    pace_s: float = 0.0,
) -> AsyncIterator[None]:
    """Talk for as long as the block runs: that many talkers, each for its own users.

    `ends` and `signals`: the fractions of entries that end a session, and that report a survey; both come late if none is open.
    """
    over = asyncio.Event()
    tasks = [
        asyncio.create_task(
            _chat(make_caller(), bot, log, over, name=f"t{index}", users=users, kinds=(ends, signals), pace_s=pace_s)
        )
        for index in range(talkers)
    ]
    try:
        yield
    finally:
        over.set()
        await asyncio.gather(*tasks)


async def _chat(
    caller: Caller, bot: str, log: Log, over: asyncio.Event, *, name: str, users: int, kinds: tuple[float, float], pace_s: float
) -> None:
    rng = Random(name)  # noqa: S311 - the same talk each time
    numbers: defaultdict[str, int] = defaultdict(int)
    async with caller:
        talker = Talker(caller, bot, log)
        while not over.is_set():
            user = f"{bot}.{name}.{rng.randrange(users)}"
            numbers[user] += 1
            await talker.say(user, numbers[user], kind=_kind(rng.random(), *kinds))
            await asyncio.sleep(pace_s)


def _kind(drawn: float, ends: float, signals: float) -> str:
    if drawn < ends:
        return "session.end"
    return "survey.sent" if drawn < ends + signals else "message"


async def until_said(log: Log, count: int, *, within_s: float = 60) -> None:
    """Wait until so many more entries are acknowledged, within a bound: before a fault there must be traffic."""
    wanted, give_up = len(log.said) + count, time.monotonic() + within_s
    while len(log.said) < wanted:
        assert time.monotonic() < give_up, f"{len(log.said)} of {wanted} entries acknowledged within {within_s:g} s"
        await asyncio.sleep(0.02)


async def back_after_s(log: Log, at_s: float, *, within_s: float = 30) -> float:
    """How long after an instant (of the monotonic clock) an entry was acknowledged again; waits for it within a bound."""
    while True:
        after = [said.acknowledged_s for said in log.said if said.began_s > at_s]
        if after:
            return min(after) - at_s
        assert time.monotonic() < at_s + within_s, f"nothing was acknowledged for {within_s:g} s"
        await asyncio.sleep(0.02)


def ms_from(text: str) -> int:
    """Read an instant of the API."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def rfc3339(at_ms: int) -> str:
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    return at.isoformat(timespec="milliseconds")
