"""The result of a replay, counted from the answers to its entries."""

from dataclasses import dataclass, field

from msgspec import Struct

from app.domain.errors import Fault
from app.replay.lines import EntryLine

_SHOWN = 20


class ProblemDetails(Struct, frozen=True):
    """The fields of problem details that a report shows."""

    status: int = 0
    title: str = ""
    detail: str = ""
    errors: tuple[Fault, ...] = ()

    @property
    def text(self) -> str:
        what = self.detail or self.title or f"answered {self.status}"
        faults = "; ".join(f"{fault.where}: {fault.what}" for fault in self.errors if fault.what != what)
        return f"{what} ({faults})" if faults else what


class EntryAnswer(Struct, frozen=True):
    """The API's answer to one entry: its session, or the error."""

    session_id: str | None = None
    session: str = "none"
    duplicate: bool = False
    error: ProblemDetails | None = None


@dataclass(slots=True)
class Tally:
    """The counts so far. `refusals` has the first refused lines, as (line number, reason)."""

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

    def add(self, line: EntryLine, answer: EntryAnswer) -> None:
        """Count one entry. A duplicate has the answer of its first time, so it opened no session now."""
        self.entries += 1
        self.duplicates += answer.duplicate
        self.opened += answer.session == "opened" and not answer.duplicate
        if answer.error is not None:
            self.refused += 1
            if len(self.refusals) < _SHOWN:
                self.refusals.append((line.number, answer.error.text))
