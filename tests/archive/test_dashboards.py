"""Dashboards and alerts name metrics, views and columns that exist: a panel that stays empty looks like a quiet day."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

import app.metrics  # noqa: F401 - it registers them

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "observability"
DASHBOARDS: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
TARGETS = [(panel["title"], target) for board in DASHBOARDS.values() for panel in board["panels"] for target in panel["targets"]]
EXPRESSIONS = [target["expr"] for _, target in TARGETS if "expr" in target] + [rule["expr"] for rule in ALERTS]
QUERIES = [(title, target["rawSql"]) for title, target in TARGETS if "rawSql" in target] + [
    (variable["name"], variable["query"]) for board in DASHBOARDS.values() for variable in board["templating"]["list"]
]
MACROS = {
    r"\$__timeFilter\((\w+)\)": r"\1 BETWEEN '2026-01-01' AND '2026-02-01'",
    r"\$__timeFrom\(\)": "'2026-01-01'",
    r"\$__timeTo\(\)": "'2026-02-01'",
    r"\$bot\b": "'shop'",
}


def known() -> set[str]:
    """Every series that the product can report."""
    families = [family for family in REGISTRY.collect() if family.name.startswith("adjourn_")]
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    return {family.name + ending for family in families for ending in endings[family.type]}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_exists(expression: str) -> None:
    """In panels and alerts."""
    names = set(re.findall(r"adjourn_\w+", expression))

    assert names or expression.startswith("up{")
    assert names <= known()


def test_every_metric_is_shown() -> None:
    """All but two, which only matter beside others that are shown."""
    shown = {name for expression in EXPRESSIONS for name in re.findall(r"adjourn_\w+", expression)}
    families = {family.name for family in REGISTRY.collect() if family.name.startswith("adjourn_")}

    missing = {name for name in families if not any(each.startswith(name) for each in shown)}

    assert missing == {"adjourn_unassigned_entries", "adjourn_rates_unchecked"}


async def test_every_query_runs_as_the_reader(engine: AsyncEngine) -> None:
    """With the rights of the role that Grafana's user has: views of `adjourn_v1` alone."""
    async with engine.connect() as conn:
        await conn.execute(text("SET ROLE adjourn_reader"))
        for _, query in QUERIES:
            for macro, sql in MACROS.items():
                query = re.sub(macro, sql, query)  # noqa: PLW2901 - macro by macro
            await conn.exec_driver_sql(query)

    assert len(QUERIES) > 8


def test_each_panel_has_a_source_that_is_provisioned() -> None:
    """By its id; and each dashboard file is valid for the provider that reads it."""
    sources = {each["uid"] for each in yaml.safe_load((FOLDER / "grafana-datasources.yml").read_text())["datasources"]}

    assert {target["datasource"]["uid"] for _, target in TARGETS} == sources
    assert len({board["uid"] for board in DASHBOARDS.values()}) == len(DASHBOARDS) == 2
    assert {Path(mount.split(":")[0]).name for mount in _mounted()} == {path.name for path in FOLDER.iterdir()}


def _mounted() -> list[str]:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    return [mount for service in services for mount in service.get("volumes", ()) if mount.startswith("./observability/")]
