"""A scripted day of a chatbot: who says what when, and what must come of it.

The script is made up from a seed, and says of every visit how its sessions end, by what happens in it and by the policy of the
demo. It asks nothing of the product: what the product makes of it is compared with this.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from app.domain.instants import HOUR_MS, MINUTE_MS, SECOND_MS, rfc3339

SEED = 20_261_120
MIDNIGHT_MS = 1_795_132_800_000  # 2026-11-20
VISITS = 360
CLOSE = "close by API"

FAREWELLS = {
    "en": "We have not heard from you for {minutes} minutes, so this chat is closed. Write again whenever you like!",
    "es": "Hace {minutes} minutos que no sabemos de usted, así que cerramos este chat. ¡Escríbanos cuando quiera!",
}
POLICY: dict[str, Any] = {
    "inactivity_minutes": 15,
    "closure_message": {"texts": {**FAREWELLS, "default": FAREWELLS["en"]}, "channels": ["web", "facebook"]},
    "on_escalated": "end",
    "channels": {"whatsapp": {"inactivity_minutes": 60, "on_handoff": "end", "on_survey_answered": "end"}},
}

_TALK = {
    "en": (("Hi!", "Where is my order?", "And when will it come?", "Thanks"), ("Hello!", "Let me look.", "It comes tomorrow.")),
    "es": (("¡Hola!", "¿Dónde está mi pedido?", "¿Y cuándo llega?", "Gracias"), ("¡Buenas!", "Déjeme ver.", "Llega mañana.")),
}
_INTENTS = ("order.status", "opening.hours", "refund", "small.talk")
_LONGEST_PAUSE_S = 240
_BETWEEN_VISITS_MS = 3 * HOUR_MS
_COMING_BACK = 0.5
_EVENING_MS = MIDNIGHT_MS + 21 * HOUR_MS

Step = tuple[int, dict[str, Any]]
"""How many seconds after the step before, and the fields of the entry."""


class Item(Struct, frozen=True):
    """One thing that happens: an entry or, without one, the operator closing the session of `user`."""

    at_ms: int
    user: str
    entry: dict[str, Any] | None


class Expected(Struct, frozen=True):
    """What must come of the day."""

    entries: int
    reasons: Counter[str]
    farewells: Counter[str]
    interactive: int


class Day(Struct, frozen=True):
    """The script in the order of time, and what must come of it. Every deadline has passed at `over_at_ms`."""

    items: list[Item]
    expected: Expected
    users: int
    over_at_ms: int


class Kind(Struct, frozen=True):
    """A way a visit goes: its steps, and how its sessions end, in order. `channels`: where the policy makes it so."""

    steps: Callable[[random.Random, str], list[Step]]
    ends: tuple[str, ...]
    channels: tuple[str, ...] = ("web", "facebook", "whatsapp")
    interactive: bool = True


def _chat(rng: random.Random, language: str) -> list[Step]:
    """Questions and answers, with pauses shorter than any silence that closes."""
    asks, answers = _TALK[language]
    steps: list[Step] = []
    for turn in range(rng.randint(1, 4)):
        intent = rng.choice(_INTENTS)
        steps.append((rng.randint(5, _LONGEST_PAUSE_S), {"role": "user", "text": asks[turn % len(asks)], "intent": intent}))
        steps.append((rng.randint(1, 4), {"role": "bot", "text": answers[turn % len(answers)]}))
    return steps


def _then(**entry: object) -> Callable[[random.Random, str], list[Step]]:
    """A chat, and then this."""
    return lambda rng, language: [*_chat(rng, language), (rng.randint(5, 60), entry)]


def _then_chat(**entry: object) -> Callable[[random.Random, str], list[Step]]:
    """A chat, then this, then another chat."""
    return lambda rng, language: [*_then(**entry)(rng, language), *_chat(rng, language)]


def _survey(rng: random.Random, language: str) -> list[Step]:
    sent, answered = {"role": "bot", "type": "survey.sent"}, {"role": "user", "type": "survey.answered", "text": "5"}
    return [*_chat(rng, language), (10, sent), (rng.randint(20, 600), answered)]


def _greeted(_: random.Random, language: str) -> list[Step]:
    return [(0, {"role": "bot", "type": "connect"}), (1, {"role": "bot", "text": _TALK[language][1][0]})]


KINDS = (
    Kind(_chat, ("inactivity",)),
    Kind(_greeted, ("inactivity",), interactive=False),
    Kind(_then(role="system", type="session.end"), ("ended",)),
    Kind(_then(role="user", type="chat.closed"), ("chat_closed",)),
    Kind(_then(role="bot", type="resolved"), ("resolved",)),
    Kind(_then(role="bot", type="escalated"), ("escalated",)),
    Kind(_then(role="bot", type="handoff"), ("handoff",), channels=("whatsapp",)),
    Kind(_survey, ("survey_answered",), channels=("whatsapp",)),
    Kind(_then(role="user", text="forget it", tags=["discard"]), ("discard",)),
    Kind(_then(type=CLOSE), ("api",)),
    Kind(_then_chat(role="system", type="session.start"), ("superseded", "inactivity")),
    Kind(_then_chat(role="user", text="start again", refresh=True), ("refresh", "inactivity")),
    Kind(_then_chat(role="system", type="interrupted"), ("interrupted", "inactivity")),
)
_WEIGHTS = (12, 2, 4, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1)


class _User(Struct):
    name: str
    channel: str
    language: str
    free_at_ms: int


def make_day(seed: int = SEED) -> Day:
    """The day of this seed. Every kind of visit happens at least once."""
    rng = random.Random(seed)
    items: list[Item] = []
    reasons: Counter[str] = Counter()
    farewells: Counter[str] = Counter()
    users: list[_User] = []
    interactive = 0
    for kind in _kinds(rng):
        user = _visitor(rng, users, rng.choice(kind.channels))
        items += _visit(rng, kind, user)
        reasons.update(kind.ends)
        interactive += len(kind.ends) if kind.interactive else 0
        if user.channel in POLICY["closure_message"]["channels"]:
            farewells[user.language] += kind.ends.count("inactivity")
    items.sort(key=lambda item: item.at_ms)
    entries = sum(item.entry is not None for item in items)
    expected = Expected(entries, reasons, +farewells, interactive)
    return Day(items, expected, len(users), items[-1].at_ms + 2 * HOUR_MS)


def _kinds(rng: random.Random) -> list[Kind]:
    return [*KINDS, *rng.choices(KINDS, weights=_WEIGHTS, k=VISITS - len(KINDS))]


def _visitor(rng: random.Random, users: list[_User], channel: str) -> _User:
    """Now and then one who was here hours ago, so whatever was open is over; else a new one."""
    language = rng.choice(tuple(_TALK))
    back = [user for user in users if (user.channel, user.language) == (channel, language) and user.free_at_ms < _EVENING_MS]
    if back and rng.random() < _COMING_BACK:
        return rng.choice(back)
    start_ms = MIDNIGHT_MS + 6 * HOUR_MS + rng.randrange(12 * 60) * MINUTE_MS
    users.append(_User(f"{channel[0]}{len(users) + 1:03d}-{language}", channel, language, start_ms))
    return users[-1]


def _visit(rng: random.Random, kind: Kind, user: _User) -> Iterator[Item]:
    at_ms = user.free_at_ms + rng.randrange(60 * 60) * SECOND_MS
    for number, (after_s, fields) in enumerate(kind.steps(rng, user.language)):
        at_ms += after_s * SECOND_MS
        if fields.get("type") == CLOSE:
            yield Item(at_ms, user.name, None)
            continue
        entry = {
            "message_id": f"{user.name}-{at_ms}-{number}",
            "user_id": user.name,
            "channel": user.channel,
            "language": user.language,
            "sent_at": rfc3339(at_ms),
            **fields,
        }
        yield Item(at_ms, user.name, entry)
    user.free_at_ms = at_ms + _BETWEEN_VISITS_MS
