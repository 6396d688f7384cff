"""The table of results: one row for each fault, written as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from msgspec import Struct

from tests.faults.oracle import Verdict

# Whether this is `make faults`: every scenario in full length, and nothing else on the machine.
is_complete_run = False

PATH = Path(__file__).resolve().parents[2] / "var" / "faults.md"
HEAD = ("fault", "rounds", "lost", "unexpected", "double", "recovery, s", "besides")


class Row(Struct, frozen=True):
    """One fault. `recovery_s` is the longest; `besides` says what else was measured."""

    fault: str
    rounds: int
    lost: int
    double: int
    unexpected: int = 0
    recovery_s: float | None = None
    besides: str = ""

    @classmethod
    def of(cls, fault: str, rounds: int, verdict: Verdict, *, recovery_s: float | None = None, besides: str = "") -> Self:
        late = f"{verdict.late} late entries" if verdict.late else ""
        verified = f"{verdict.hours} hours of the roll-up verified" if verdict.hours else ""
        return cls(
            fault,
            rounds,
            len(verdict.lost),
            len(verdict.double),
            len(verdict.unexpected),
            recovery_s=recovery_s,
            besides="; ".join(filter(None, (besides, late, verified))),
        )

    def cells(self) -> tuple[str, ...]:
        recovery = "" if self.recovery_s is None else f"{self.recovery_s:.1f}"
        return (
            self.fault,
            str(self.rounds),
            str(self.lost),
            str(self.unexpected),
            str(self.double),
            recovery,
            self.besides,
        )


def markdown(rows: Iterable[Sequence[str]]) -> str:
    lines = [HEAD, ("---",) * len(HEAD), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
