"""Closed sessions made up at random over eight months, with changes of clocks in them, and their recount in plain Python."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from math import ceil
from random import Random
from zoneinfo import ZoneInfo

from app.archive.sessions import ClosedSession
from app.domain.instants import ms_of
from tests.closed import closed_session

FIRST = datetime(2026, 2, 20, tzinfo=UTC)
LAST = datetime(2026, 11, 10, tzinfo=UTC)
HOUR_MS = 3_600_000
DAY = timedelta(days=1)


def history(random: Random, count: int) -> list[ClosedSession]:
    """`count` sessions of two bots; most in the weeks in which clocks change, where buckets are odd."""
    return [_session(random, number) for number in range(count)]


def _session(random: Random, number: int) -> ClosedSession:
    around = random.choice([FIRST, datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC), LAST - 3 * DAY])
    opened_at_ms = ms_of(around) + random.randrange(3 * 24 * HOUR_MS)
    if random.random() < 0.3:
        opened_at_ms = random.randrange(ms_of(FIRST), ms_of(LAST))
    user = f"user-{random.randrange(60)}"
    interactive = random.random() < 0.8
    outcome = random.choice(["completed", "resolved", "escalated", "handed_off", "abandoned"])
    closed_at_ms = opened_at_ms + random.randrange(1, 3 * HOUR_MS)
    reason = "abandoned" if outcome == "abandoned" else random.choice(["inactivity", "ended", "interrupted"])
    return closed_session(
        number,
        bot=random.choice(["shop", "bank"]),
        messages=0,
        user_id=user,
        conversation=f"web:{user}:{random.randrange(2)}",
        opened_at_ms=opened_at_ms,
        closed_at_ms=closed_at_ms,
        last_user_at_ms=random.randrange(opened_at_ms, closed_at_ms + 1),
        intents=tuple(random.choices(["buy", "refund", "hours", 'odd "one"'], k=random.randrange(5))),
        channel=random.choice(["web", "web", "web", "sms", "whatsapp", "api"]),
        language=random.choice([None, "de", "pt-BR"]),
        intent=random.choice([None, "buy", "refund", 'odd "one"', "ünï"]),
        trade=random.choice(["bot", "bot", "agent"]),
        policy_version=random.randrange(1, 4),
        interactive=interactive,
        developer=random.random() < 0.1,
        counted=random.random() < 0.9,
        outcome=outcome,
        reason=reason,
        contained=outcome in {"completed", "resolved"} and reason != "interrupted",
        entries=random.randrange(1, 40),
        user_entries=random.randrange(20),
        bot_entries=random.randrange(20),
        agent_entries=random.randrange(3),
        system_entries=random.randrange(3),
        interactions=random.randrange(30),
        billing_sessions=random.randrange(4),
        first_response_ms=random.choice([None, random.randrange(60_000)]),
    )


Sessions = Sequence[ClosedSession]
Value = dict[str, int | float | None]


class Recount:
    """Counts groups of these sessions by hand."""

    def __init__(self, everything: Sessions) -> None:
        self._of_user = split([one for one in everything if one.session.counted], _user)
        # Each user's first session that counts.
        self._firsts = {min((one.session.opened_at_ms, one.session.id) for one in own)[1] for own in self._of_user.values()}

    def value(self, metric: str, group: Sessions) -> Value:  # noqa: C901, PLR0911, PLR0912 - a case a metric
        """A metric of a group, by counting one by one."""
        counted = [one for one in group if one.session.counted]
        conversed = [one for one in counted if one.session.interactive]
        match metric:
            case "sessions":
                return {"value": len(group)}
            case "counted":
                return {"value": len(counted)}
            case "interactive":
                return _fraction(len(conversed), len(counted))
            case "conversations":
                return {"value": len({(one.strand.bot, one.strand.conversation) for one in counted})}
            case "users":
                return {"value": len({_user(one) for one in counted})}
            case "users_new":
                return {"value": len(self._firsts & {one.session.id for one in counted})}
            case "users_returning":
                return {"value": len({_user(one) for one in counted if one.session.id not in self._firsts})}
            case "interactions" | "entries" | "billing_sessions":
                return {"value": sum(getattr(one.session, metric) for one in counted)}
            case "entries_user" | "entries_bot" | "entries_agent" | "entries_system":
                role = metric.removeprefix("entries_")
                return {"value": sum(getattr(one.session, f"{role}_entries") for one in counted)}
            case "contained":
                return _share(conversed, _contained)
            case "escalated" | "handed_off" | "resolved" | "abandoned" | "dropped":
                return _share(conversed, lambda one: one.session.outcome == metric)
            case "active_ms" | "idle_ms":
                return _spread(getattr(one.session, metric) for one in counted)
            case "first_response_ms":
                return _spread(one.session.first_response_ms for one in counted)
            case "interactions_per_session":
                total = sum(one.session.interactions for one in counted)
                mean = int(total * 100 / len(counted)) / 100 if counted else None
                return {"sum": total, "count": len(counted), "mean": mean}
            case "returned_24h" | "returned_7d":
                return _share(conversed, lambda one: self._returned(one, hours=_HOURS[metric]))
            case "contained_24h" | "contained_7d":
                return _share(conversed, lambda one: _contained(one) and not self._returned(one, hours=_HOURS[metric]))
        raise AssertionError(metric)

    def _returned(self, one: ClosedSession, *, hours: int) -> bool:
        closed_at_ms = one.session.closed_at_ms or 0
        return any(
            closed_at_ms <= later.session.opened_at_ms < closed_at_ms + hours * HOUR_MS
            for later in self._of_user[_user(one)]
            if later.session.interactive and later is not one
        )


_HOURS = {"returned_24h": 24, "contained_24h": 24, "returned_7d": 168, "contained_7d": 168}


def local_key(unit: str, at_ms: int, zone: ZoneInfo) -> object:
    """The bucket of an instant as its label begins: an hour with its offset, else a date."""
    local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
    match unit:
        case "hour":
            into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
            return (local.astimezone(UTC) - into).astimezone(zone).isoformat()
        case "day":
            return local.date().isoformat()
        case "week":
            return (local.date() - timedelta(days=local.weekday())).isoformat()
        case "month":
            return local.date().replace(day=1).isoformat()
        case _:
            return local.weekday() * 24 + local.hour


def value_of(dimension: str, one: ClosedSession) -> object:
    return one.strand.bot if dimension == "bot" else getattr(one.session, dimension)


def split(group: Sessions, key: Callable[[ClosedSession], object]) -> dict[object, list[ClosedSession]]:
    found: dict[object, list[ClosedSession]] = defaultdict(list)
    for one in group:
        found[key(one)].append(one)
    return found


def _user(one: ClosedSession) -> tuple[str, str]:
    return one.strand.bot, one.session.user_id


def _contained(one: ClosedSession) -> bool:
    bad = {"abandoned", "dropped", "escalated", "handed_off"}
    return one.session.outcome not in bad and one.session.reason not in {"interrupted", "abandoned"}


def _share(group: Sessions, condition: Callable[[ClosedSession], bool]) -> Value:
    return _fraction(Counter(map(condition, group))[True], len(group))


def _fraction(part: int, whole: int) -> Value:
    return {"part": part, "whole": whole, "percent": int(100 * part / whole) if whole else None}


def _spread(values: Iterable[int | None]) -> Value:
    known = sorted(value for value in values if value is not None)
    nearest = {f"p{at}": known[ceil(len(known) * at / 100) - 1] if known else None for at in (50, 90, 99)}
    return {"sum": sum(known), "count": len(known), "mean": sum(known) // len(known) if known else None, **nearest}
