"""A scripted day of a chatbot: the entries of every visit, and the expected sessions.

The script is generated from a seed. For every kind of visit it states how the sessions end under the demo's policy; it uses
none of the product's rules, so that the product's result can be compared with it.
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

CLOSURE_TEXTS = {
    "en": "We have not heard from you for {minutes} minutes, so this chat is closed. Write again whenever you like!",
    "es": "Hace {minutes} minutos que no sabemos de usted, así que cerramos este chat. ¡Escríbanos cuando quiera!",
}
POLICY: dict[str, Any] = {
    "inactivity_minutes": 15,
    "closure_message": {"texts": {**CLOSURE_TEXTS, "default": CLOSURE_TEXTS["en"]}, "channels": ["web", "facebook"]},
    "on_escalated": "end",
    "channels": {"whatsapp": {"inactivity_minutes": 60, "on_handoff": "end", "on_survey_answered": "end"}},
}

_TALK = {
    "en": (("Hi!", "Where is my order?", "And when will it come?", "Thanks"), ("Hello!", "Let me look.", "It comes tomorrow.")),
    "es": (("¡Hola!", "¿Dónde está mi pedido?", "¿Y cuándo llega?", "Gracias"), ("¡Buenas!", "Déjeme ver.", "Llega mañana.")),
}
LANGUAGES = tuple(_TALK)
_INTENTS = ("order.status", "opening.hours", "refund", "small.talk")
_LONGEST_PAUSE_S = 240
_BETWEEN_VISITS_MS = 3 * HOUR_MS
_COMING_BACK = 0.5
_EVENING_MS = MIDNIGHT_MS + 21 * HOUR_MS

Step = tuple[int, dict[str, Any]]
"""Seconds after the step before, and the fields of the entry."""


class ScriptItem(Struct, frozen=True):
    """An entry or, without one, a close of the session of `user` by the API."""

    at_ms: int
    user: str
    entry: dict[str, Any] | None


class Expected(Struct, frozen=True):
    """The expected result of the day."""

    entries: int
    reasons: Counter[str]
    closure_messages: Counter[str]
    interactive: int
    late: int


class Day(Struct, frozen=True):
    """The script in order of time, and its expected result. Every deadline has passed at `over_at_ms`."""

    items: list[ScriptItem]
    expected: Expected
    users: int
    over_at_ms: int


class VisitKind(Struct, frozen=True):
    """A kind of visit: its steps, the close reasons of its sessions in order, and its late entries.

    `channels` are those where this holds.
    """

    steps: Callable[[random.Random, str], list[Step]]
    ends: tuple[str, ...]
    channels: tuple[str, ...] = ("web", "facebook", "whatsapp")
    interactive: bool = True
    late: int = 0


def _chat(rng: random.Random, language: str) -> list[Step]:
    """Questions and answers, with pauses shorter than any inactivity that closes."""
    asks, answers = _TALK[language]
    steps: list[Step] = []
    for round_ in range(rng.randint(1, 4)):
        intent = rng.choice(_INTENTS)
        steps.append((rng.randint(5, _LONGEST_PAUSE_S), {"role": "user", "text": asks[round_ % len(asks)], "intent": intent}))
        steps.append((rng.randint(1, 4), {"role": "bot", "text": answers[round_ % len(answers)]}))
    return steps


def _then(**entry: object) -> Callable[[random.Random, str], list[Step]]:
    """A chat, followed by this entry."""
    return lambda rng, language: [*_chat(rng, language), (rng.randint(5, 60), entry)]


def _then_chat(**entry: object) -> Callable[[random.Random, str], list[Step]]:
    """A chat, this entry, and another chat."""
    return lambda rng, language: [*_then(**entry)(rng, language), *_chat(rng, language)]


def _survey(rng: random.Random, language: str) -> list[Step]:
    sent, answered = {"role": "bot", "type": "survey.sent"}, {"role": "user", "type": "survey.answered", "text": "5"}
    return [*_chat(rng, language), (10, sent), (rng.randint(20, 600), answered)]


def _late_survey(rng: random.Random, language: str) -> list[Step]:
    sent, answered = {"role": "bot", "type": "survey.sent"}, {"role": "user", "type": "survey.answered", "text": "4"}
    return [*_then(role="bot", type="resolved")(rng, language), (5, sent), (rng.randint(20, 3_000), answered)]


def _greeted(_: random.Random, language: str) -> list[Step]:
    return [(0, {"role": "bot", "type": "connect"}), (1, {"role": "bot", "text": _TALK[language][1][0]})]


KINDS = (
    VisitKind(_chat, ("inactivity",)),
    VisitKind(_greeted, ("inactivity",), interactive=False),
    VisitKind(_then(role="system", type="session.end"), ("ended",)),
    VisitKind(_then(role="user", type="chat.closed"), ("chat_closed",)),
    VisitKind(_then(role="bot", type="resolved"), ("resolved",)),
    VisitKind(_late_survey, ("resolved",), late=2),
    VisitKind(_then(role="bot", type="escalated"), ("escalated",)),
    VisitKind(_then(role="bot", type="handoff"), ("handoff",), channels=("whatsapp",)),
    VisitKind(_survey, ("survey_answered",), channels=("whatsapp",)),
    VisitKind(_then(role="user", text="forget it", tags=["discard"]), ("discard",)),
    VisitKind(_then(type=CLOSE), ("api",)),
    VisitKind(_then_chat(role="system", type="session.start"), ("superseded", "inactivity")),
    VisitKind(_then_chat(role="user", text="start again", refresh=True), ("refresh", "inactivity")),
    VisitKind(_then_chat(role="system", type="interrupted"), ("interrupted", "inactivity")),
)
WEIGHTS = (12, 2, 4, 4, 3, 1, 2, 2, 2, 1, 1, 1, 1, 1)


class _User(Struct):
    name: str
    channel: str
    language: str
    free_at_ms: int


def make_day(seed: int = SEED) -> Day:
    """The day of this seed. Every kind of visit happens at least once."""
    rng = random.Random(seed)
    items: list[ScriptItem] = []
    reasons: Counter[str] = Counter()
    closure_messages: Counter[str] = Counter()
    users: list[_User] = []
    interactive = late = 0
    for kind in _kinds(rng):
        user = _visitor(rng, users, rng.choice(kind.channels))
        items += _visit(rng, kind, user)
        reasons.update(kind.ends)
        interactive += len(kind.ends) if kind.interactive else 0
        late += kind.late
        if kind.interactive and user.channel in POLICY["closure_message"]["channels"]:
            closure_messages[user.language] += kind.ends.count("inactivity")
    items.sort(key=lambda item: item.at_ms)
    entries = sum(item.entry is not None for item in items)
    expected = Expected(entries, reasons, +closure_messages, interactive, late)
    return Day(items, expected, len(users), items[-1].at_ms + 2 * HOUR_MS)


def _kinds(rng: random.Random) -> list[VisitKind]:
    return [*KINDS, *rng.choices(KINDS, weights=WEIGHTS, k=VISITS - len(KINDS))]


def _visitor(rng: random.Random, users: list[_User], channel: str) -> _User:
    """Sometimes a user whose last visit was hours ago, so that no session is open; otherwise a new one."""
    language = rng.choice(LANGUAGES)
    back = [user for user in users if (user.channel, user.language) == (channel, language) and user.free_at_ms < _EVENING_MS]
    if back and rng.random() < _COMING_BACK:
        return rng.choice(back)
    start_ms = MIDNIGHT_MS + 6 * HOUR_MS + rng.randrange(12 * 60) * MINUTE_MS
    users.append(_User(f"{channel[0]}{len(users) + 1:03d}-{language}", channel, language, start_ms))
    return users[-1]


def _visit(rng: random.Random, kind: VisitKind, user: _User) -> Iterator[ScriptItem]:
    at_ms = user.free_at_ms + rng.randrange(60 * 60) * SECOND_MS
    for number, (after_s, fields) in enumerate(kind.steps(rng, user.language)):
        at_ms += after_s * SECOND_MS
        if fields.get("type") == CLOSE:
            yield ScriptItem(at_ms, user.name, None)
            continue
        entry = {
            "message_id": f"{user.name}-{at_ms}-{number}",
            "user_id": user.name,
            "channel": user.channel,
            "language": user.language,
            "sent_at": rfc3339(at_ms),
            **fields,
        }
        yield ScriptItem(at_ms, user.name, entry)
    user.free_at_ms = at_ms + _BETWEEN_VISITS_MS
