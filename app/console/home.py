"""The first page: sessions now and today against yesterday, the next closes, the latest ones with their reasons, and trouble.

An installation without any session shows how to post the first message instead, and changes when it comes.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.responses import Response

from app.console.api_calls import Json, together
from app.console.visit import Visit

SHOWN = 8
_DAY = timedelta(days=1)
_TODAY = ("sessions", "contained", "dropped", "billing_sessions")
_UNACCOUNTED = re.compile(r"^adjourn_unaccounted(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


async def show(visit: Visit) -> Response:
    today, recent, live, trouble, unaccounted = await together(
        _today(visit), _recent(visit), visit.api.allowed("/v1/live", {"limit": SHOWN}), _trouble(visit), unaccounted_of(visit)
    )
    return visit.page(
        "home.html",
        title="Home",
        today=today,
        recent=recent,
        live=live,
        trouble=trouble,
        unaccounted=unaccounted,
        empty=not recent and not (live and live["open"]),
        docs_here=visit.request.app.state.docs_here,
        origin=str(visit.request.base_url).removesuffix("/").removesuffix("/console"),
    )


async def unaccounted_of(visit: Visit) -> int | None:
    """Sessions and records that the workers counted and cannot find; None if no worker on this machine has measured it yet."""
    measured = _UNACCOUNTED.search(await visit.api.text("/metrics"))
    return None if measured is None else int(float(measured[1]))


async def _today(visit: Visit) -> Json | None:
    """The day's figures, each beside those of the same hours of the day before."""
    now = datetime.fromtimestamp(visit.now_ms / 1000, UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    asked = {"metrics": ",".join(_TODAY), "from": midnight.isoformat(), "to": now.isoformat()}
    before = asked | {"from": (midnight - _DAY).isoformat(), "to": (now - _DAY).isoformat()}
    if now - midnight < timedelta(seconds=1):
        return None
    answers = await together(*(visit.api.allowed("/v1/analytics/sessions", each) for each in (asked, before)))
    if None in answers:
        return None
    today, yesterday = (_figures(answer) for answer in answers)
    return {name: (today[name], yesterday[name]) for name in _TODAY}


def _figures(answer: Json) -> dict[str, Any]:
    (group,) = answer["groups"]
    figures: dict[str, Any] = group["metrics"]
    return figures


async def _recent(visit: Visit) -> list[Json]:
    answer = await visit.api.allowed("/v1/sessions", {"order": "-closed_at", "limit": SHOWN})
    return [] if answer is None else answer["sessions"]


async def _trouble(visit: Visit) -> list[Json] | None:
    """Deliveries that were given up; None if the key may not see them."""
    answer = await visit.api.allowed("/v1/deliveries", {"status": "failed", "limit": SHOWN})
    return None if answer is None else answer["deliveries"]
