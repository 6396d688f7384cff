"""Every scenario writes a row of the table, which is shown at the end; `make faults` also keeps it in `var/faults.md`."""

from collections.abc import AsyncIterator, Callable

import pytest
from _pytest.mark import ParameterSet

from tests.faults import table
from tests.faults.installation import Installation, installation
from tests.faults.table import Row

_ROW = "row of the table of faults"  # a property of a test's report, which also reaches the process that sums up

Tabulate = Callable[[Row], None]


def marks(timeout_s: int) -> list[pytest.MarkDecorator]:
    """The marks of a parameter for `make faults`; beside it stands a short one for `make test`."""
    return [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(timeout_s)]


def full(*values: object, timeout_s: int) -> ParameterSet:
    return pytest.param(*values, marks=marks(timeout_s), id="full")


@pytest.fixture
def tabulate(record_property: Callable[[str, object], None]) -> Tabulate:
    """Add a row to the table."""
    return lambda row: record_property(_ROW, row.cells())


@pytest.fixture
async def stage() -> AsyncIterator[Installation]:
    """Servers, receiver and a zygote of the test's own; no process of the product yet."""
    async with installation() as made:
        yield made


def pytest_configure(config: pytest.Config) -> None:
    table.is_complete_run = config.getoption("markexpr") == "faults"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [cells for report in reports if report.when == "call" for name, cells in report.user_properties if name == _ROW]
    if not rows:
        return
    text = table.markdown(rows)
    terminalreporter.section("faults")
    terminalreporter.write(text)
    if table.is_complete_run:
        table.PATH.parent.mkdir(mode=0o700, exist_ok=True)
        table.PATH.write_text(text)
