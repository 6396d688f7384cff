"""Metrics of closed sessions as charts with their tables: series, breakdown, hours of the week, paths, definitions compared.

Charts are SVG that pygal draws on the server. Its own styles and scripts are taken out, since the pages' policy forbids them; the
console's stylesheet colours the charts, in light and dark.
"""

import sys
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree.ElementTree import Element, tostring

import pygal
from starlette.responses import Response

from app.console.api_calls import Json, together
from app.console.forms import Field, as_query
from app.console.visit import PREFIX, Visit
from app.queries.analytics import TIME_DIMENSIONS

ANALYTICS = "/v1/analytics/sessions"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = 24
DAYS_SHOWN = 7
"""The page shows as many full days, and today, unless the address names a time."""
_SHADES = 5
_FORBIDDEN = {"script", "style", "desc"}
_WEEKLY = "hour_of_week"

# pygal adds a finder for its plug-ins, which Python warns of at each import that fails; none is used here.
sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]


async def show(visit: Visit) -> Response:
    """One metric in the ways that the address asks for."""
    asked = dict(visit.query)
    metric, time, dimension = asked.get("metric", "sessions"), asked.get("time", "day"), asked.get("dimension", "reason")
    fields = {field.name: field for field in visit.document.query_fields(ANALYTICS)}
    common = as_query(
        [fields["from"], fields["to"]], [each for each in visit.query if each[0] in {"bot", "from", "to", "time_zone"}]
    )
    if not any(name in {"from", "to"} for name, _ in common):
        since = datetime.fromtimestamp(visit.now_ms / 1000, UTC) - timedelta(days=DAYS_SHOWN)
        common.append(("from", f"{since:%Y-%m-%dT00:00Z}"))
    steps = [("steps", step.strip()) for step in asked.get("steps", "").split(",") if step.strip()]
    bot = asked.get("bot") or (visit.bots[0].id if len(visit.bots) == 1 else None)
    series, breakdown, week, paths, compared = await together(
        visit.api.get(ANALYTICS, [*common, ("metrics", metric), ("group_by", time)]),
        visit.api.get(ANALYTICS, [*common, ("metrics", metric), ("group_by", dimension)]),
        visit.api.get(ANALYTICS, [*common, ("metrics", metric), ("group_by", _WEEKLY)]),
        visit.api.get("/v1/analytics/paths", [*(each for each in common if each[0] != "time_zone"), *steps]),
        _compared(visit, bot, common),
    )
    return visit.page(
        "metrics.html",
        title="Metrics",
        asked={**asked, "metric": metric, "time": time, "dimension": dimension},
        choices=_choices(fields),
        period=[fields["from"], fields["to"]],
        charts=[_chart(series, metric, title=f"{metric} by {time}"), _chart(breakdown, metric, title=f"{metric} by {dimension}")],
        week=_week(week, metric),
        days=DAYS,
        paths=paths,
        compared=compared,
        compared_bot=bot,
        shown=(series["from"], series["to"]),
    )


def _choices(fields: dict[str, Field]) -> dict[str, tuple[str, ...]]:
    groups = fields["group_by"].options
    return {
        "metric": fields["metrics"].options,
        "time": tuple(name for name in groups if name in TIME_DIMENSIONS and name != _WEEKLY),
        "dimension": tuple(name for name in groups if name not in TIME_DIMENSIONS),
    }


async def _compared(visit: Visit, bot: str | None, common: list[tuple[str, str]]) -> Json | None:
    """One bot's history under each system's definitions; None unless one bot is meant."""
    if bot is None:
        return None
    period = [each for each in common if each[0] in {"from", "to"}]
    found: Json = await visit.api.get("/v1/analytics/definitions/compare", [("bot", bot), *period])
    return found


def number_of(value: Json) -> float:
    """The number of a metric that a chart shows: a count, a whole percent, a mean, or the middle of a spread."""
    for name in ("value", "percent", "p50", "mean"):
        if name in value:
            return float(value[name] or 0)
    return 0.0


def list_of(value: Json) -> str | None:
    """The page that lists the sessions of a number."""
    address: str | None = value["sessions_url"]
    return None if address is None else address.replace("/v1/sessions", f"{PREFIX}/sessions", 1)


def _chart(answer: Json, metric: str, *, title: str) -> dict[str, Any]:
    """A chart and the rows of its table: label, value, and the page that lists its sessions."""
    (name,) = answer["group_by"]
    rows = [(_label(group["key"][name], other=group["other"]), group["metrics"][metric]) for group in answer["groups"]]
    chart = pygal.Bar(js=[], show_legend=False, disable_xml_declaration=True, width=900, height=260, x_label_rotation=30)
    chart.x_labels = [label for label, _ in rows]
    chart.x_labels_major_count = 12
    chart.show_minor_x_labels = False
    chart.add(metric, [number_of(value) for _, value in rows])
    chart.add_xml_filter(_allowed)
    return {
        "title": title,
        "svg": tostring(chart.render_tree(), encoding="unicode") if rows else None,
        "rows": [(label, number_of(value), value, list_of(value)) for label, value in rows],
    }


def _label(key: object, *, other: bool) -> str:
    if other:
        return "others"
    return "none" if key is None else str(key).replace("T00:00:00+00:00", "")


def _allowed(svg: Element) -> Element:
    """The drawing without the parts that the pages' policy forbids, and named for those who cannot see it."""
    for parent in list(svg.iter()):
        parent.attrib.pop("style", None)
        for child in list(parent):
            # A comment has a function as its tag.
            if callable(child.tag) or str(child.tag) in _FORBIDDEN:
                parent.remove(child)
    svg.attrib.update({"role": "img", "aria-label": "Chart; the table below has the same numbers", "class": "figure chart"})
    return svg


def _week(answer: Json, metric: str) -> list[list[tuple[float, int]]]:
    """By day of the week and hour: the number, and its shade from 0 to 5."""
    numbers = [number_of(group["metrics"][metric]) for group in answer["groups"]]
    most = max([*numbers, 1.0])
    cells = [(number, round(_SHADES * number / most)) for number in numbers]
    return [cells[start : start + HOURS] for start in range(0, len(cells), HOURS)]
