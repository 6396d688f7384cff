"""Plays the day through the API: makes a bot and its endpoint, posts entries, closes sessions; then reads the result."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from app.demo.day import POLICY, Day, ScriptItem
from app.demo.receiver import Receiver
from app.domain.instants import rfc3339
from app.replay.lines import BATCH_ENTRIES, EntryLine
from app.replay.poster import Poster

BOT = "demo"
_PATIENCE_S = 30.0

JsonDict = dict[str, Any]


class DemoFailed(Exception):
    """The API refused a request of the demo; the message says which."""


class Played(Struct, frozen=True):
    """The API's answers to the entries, and the sessions that it lists afterwards."""

    taken: int
    refused: int
    opened: int
    sessions: list[JsonDict]
    page: list[JsonDict]


async def play(api: httpx.AsyncClient, day: Day, receiver: Receiver, *, on_progress: Callable[[int], None]) -> Played:
    """Play the whole day; `on_progress` gets the number of items so far. Raises `DemoFailed`."""
    await _set_up(api, receiver)
    player = _Player(api)
    for done, item in enumerate(day.items, start=1):
        await player.take(item)
        on_progress(done)
    await player.flush()
    advance = {"to": rfc3339(day.over_at_ms)}
    await _ask(api, "POST", f"/v1/bots/{BOT}/clock/advance", json=advance)
    await receiver.until("session.closed", day.expected.reasons.total(), within_s=_PATIENCE_S)
    sessions = [session async for session in _pages(api, {"bot": BOT, "limit": "200"})]
    page = await _ask(api, "GET", "/v1/sessions", params={"bot": BOT, "limit": "8"})
    return Played(player.taken, player.refused, player.opened, sessions, page["sessions"])


async def _set_up(api: httpx.AsyncClient, receiver: Receiver) -> None:
    bot = {"id": BOT, "name": "Demo", "sandbox": True, "clock_mode": "sent_at", "policy": POLICY}
    await _ask(api, "POST", "/v1/bots", json=bot)
    events = ["session.closure_message", "session.closed"]
    endpoint = await _ask(api, "POST", f"/v1/bots/{BOT}/endpoints", json={"url": receiver.url, "events": events})
    receiver.secret = endpoint["secret"]


class _Player:
    """Posts entries in batches; before a close by the API, the entries before it are posted."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self._poster = Poster(api, bot=BOT)
        self._batch: list[tuple[str, EntryLine]] = []
        self._session_of: dict[str, str] = {}
        self.taken = 0
        self.refused = 0
        self.opened = 0

    async def take(self, item: ScriptItem) -> None:
        if item.entry is None:
            await self.flush()
            await _ask(self._api, "POST", f"/v1/sessions/{self._session_of[item.user]}/close")
            return
        self._batch.append((item.user, EntryLine(len(self._batch), msgspec.json.encode(item.entry), item.at_ms)))
        if len(self._batch) == BATCH_ENTRIES:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        answers = await self._poster.post([line for _, line in batch])
        for (user, _), answer in zip(batch, answers, strict=True):
            self.refused += answer.error is not None
            self.taken += answer.error is None
            self.opened += answer.session == "opened"
            if answer.session_id is not None:
                self._session_of[user] = answer.session_id


async def _pages(api: httpx.AsyncClient, parameters: dict[str, str]) -> AsyncIterator[JsonDict]:
    while True:
        page = await _ask(api, "GET", "/v1/sessions", params=parameters)
        for session in page["sessions"]:
            yield session
        if page["next"] is None:
            return
        parameters = parameters | {"cursor": page["next"]}


async def _ask(
    api: httpx.AsyncClient,
    method: str,
    path: str,
    *,
    json: JsonDict | None = None,
    params: dict[str, str] | None = None,
) -> JsonDict:
    reply = await api.request(method, path, json=json, params=params)
    if not reply.is_success:
        raise DemoFailed(f"{method} {path}: {reply.status_code} {reply.text}")
    answer: JsonDict = reply.json()
    return answer
