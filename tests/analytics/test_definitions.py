"""Metrics and dimensions are defined once: the guide's tables are made from that definition."""

from pathlib import Path

from app.archive.analytics_metrics import DIMENSIONS, METRICS
from app.archive.tables import sessions

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()


def table(heading: str) -> list[str]:
    """The rows of the first table after a heading's line."""
    return GUIDE.split(heading)[1].split("\n\n")[0].strip().splitlines()


def test_the_guide_lists_every_metric() -> None:
    """In the order of the table in the code, in its words."""
    rows = [f"| `{metric.name}` | {metric.kind} | {metric.unit} | {metric.definition} |" for metric in METRICS.values()]

    assert table("| metric | kind | unit | definition |\n| --- | --- | --- | --- |") == rows


def test_the_guide_lists_every_dimension() -> None:
    rows = [f"| `{dimension.name}` | {dimension.definition} |" for dimension in DIMENSIONS.values()]

    assert table("| dimension | definition |\n| --- | --- |") == rows


def test_every_dimension_is_a_column() -> None:
    assert {dimension.column for dimension in DIMENSIONS.values()} <= set(sessions.c.keys())
