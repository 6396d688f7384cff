"""Traffic that goes on until it is cancelled, for `adjourn demo --stay`: an installation that is worth looking at.

Three bots in real time with different policies. Users come, talk and leave in the ways of the scripted day, with pauses of
seconds. The webhooks of two bots are accepted; the third one's receiver refuses each, since it has another secret. It compares
nothing, and goes on after a refusal: people may delete a bot in the console while it runs.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import httpx

from app.demo.day import CLOSE, KINDS, LANGUAGES, SEED, WEIGHTS
from app.demo.play import DemoFailed, Receiver, ask

BOTS: Mapping[str, dict[str, Any]] = {
    "shop": {"preset": "botanalytics", "inactivity_minutes": 5},
    "bank": {"preset": "reamaze", "reminder": {"minutes": 2, "texts": {"default": "Are you still there?"}}},
    "clinic": {"preset": "aivo"},
}
"""The bots with their policies."""

REFUSED = "clinic"
"""The bot whose webhooks are refused."""

_OTHER_SECRET = "whsec_b3RoZXI="  # noqa: S105 - wrong on purpose
_NAMES = ("ann", "bob", "carla", "dora", "eve", "frank", "grace", "hugo", "ines", "juan")
_USERS = 60
_VISIT_EACH_S = 1.5
_AT_ONCE = 12
_LONGEST_PAUSE_S = 6.0

Report = Callable[[str], None]


async def stay_busy(api: httpx.AsyncClient, *, report: Report) -> None:
    """Make the bots and let users come until this is cancelled. `report` gets each failure once."""
    rng = random.Random(SEED)
    async with AsyncExitStack() as stack:
        for bot, policy in BOTS.items():
            await ask(api, "POST", "/v1/bots", json={"id": bot, "name": bot.title(), "policy": policy})
            receiver = await stack.enter_async_context(Receiver.listening())
            endpoint = await ask(api, "POST", f"/v1/bots/{bot}/endpoints", json={"url": receiver.url})
            receiver.secret = _OTHER_SECRET if bot == REFUSED else endpoint["secret"]
        await _visits(_Visitors(api, rng, report))


async def _visits(visitors: "_Visitors") -> None:
    """Some begin at once, so that there is something to see; the others one after the other."""
    async with asyncio.TaskGroup() as visits:
        for _ in range(_AT_ONCE):
            visits.create_task(visitors.visit())
        while True:
            await asyncio.sleep(_VISIT_EACH_S)
            visits.create_task(visitors.visit())


class _Visitors:
    """Users of the bots; a user may come back, so that conversations have several sessions."""

    def __init__(self, api: httpx.AsyncClient, rng: random.Random, report: Report) -> None:
        self._api = api
        self._rng = rng
        self._report = report
        self._reported: set[str] = set()

    async def visit(self) -> None:
        """One visit; a refusal ends it."""
        try:
            await self._visit()
        except (DemoFailed, httpx.TransportError) as error:
            text = str(error) or type(error).__name__
            if text not in self._reported:
                self._reported.add(text)
                self._report(text)

    async def _visit(self) -> None:
        rng = self._rng
        (kind,) = rng.choices(KINDS, weights=WEIGHTS)
        bot, language, number = rng.choice(tuple(BOTS)), rng.choice(LANGUAGES), rng.randrange(_USERS)
        user = {"user_id": f"{rng.choice(_NAMES)}-{number}", "channel": rng.choice(kind.channels), "language": language}
        session = ""
        for pause_s, fields in kind.steps(rng, language):
            await asyncio.sleep(min(pause_s / 10, rng.uniform(0, _LONGEST_PAUSE_S)))
            if fields.get("type") == CLOSE:
                await ask(self._api, "POST", f"/v1/sessions/{session}/close")
            else:
                answer = await ask(self._api, "POST", f"/v1/bots/{bot}/messages", json=user | fields)
                session = answer["session_id"] or session
