"""What came of a replay: counted from the answers to its entries."""

from dataclasses import dataclass, field

from msgspec import Struct

from app.domain.errors import Fault
from app.replay.lines import Line

_TOLD = 20


class Problem(Struct, frozen=True):
    """The part of problem details that a person reads."""

    status: int = 0
    title: str = ""
    detail: str = ""
    errors: tuple[Fault, ...] = ()

    @property
    def words(self) -> str:
        what = self.detail or self.title or f"answered {self.status}"
        faults = "; ".join(f"{fault.where}: {fault.what}" for fault in self.errors if fault.what != what)
        return f"{what} ({faults})" if faults else what


class Answered(Struct, frozen=True):
    """What the API says of one entry: where it went, or why not."""

    session_id: str | None = None
    session: str = "none"
    duplicate: bool = False
    error: Problem | None = None


@dataclass(slots=True)
class Tally:
    """The counts so far. `refusals` holds the first of the refused, as (line number, why)."""

    entries: int = 0
    opened: int = 0
    duplicates: int = 0
    refused: int = 0
    retries: int = 0
    elapsed_s: float = 0.0
    refusals: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Entries a second."""
        return self.entries / self.elapsed_s if self.elapsed_s else 0.0

    def add(self, line: Line, answer: Answered) -> None:
        """Count one entry. A duplicate carries its first answer, which opened a session then, not now."""
        self.entries += 1
        self.duplicates += answer.duplicate
        self.opened += answer.session == "opened" and not answer.duplicate
        if answer.error is not None:
            self.refused += 1
            if len(self.refusals) < _TOLD:
                self.refusals.append((line.number, answer.error.words))
