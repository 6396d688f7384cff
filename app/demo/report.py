"""The result of the day beside the script, as tables, and whether they agree."""

from collections import Counter

from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

from app.demo.day import Day
from app.demo.play import JsonDict, Played, Receiver

_TIMES = slice(11, 19)


class CountRow(Struct, frozen=True):
    """One scripted count, and the counts that were seen."""

    name: str
    expected: int
    seen: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        return all(count == self.expected for count in self.seen)


class Comparison(Struct, frozen=True):
    """Everything that is compared; `texts` is the first closure message of each language."""

    reasons: list[CountRow]
    closure_messages: list[CountRow]
    totals: list[CountRow]
    texts: dict[str, str]

    @property
    def agrees(self) -> bool:
        return all(row.agrees for row in (*self.reasons, *self.closure_messages, *self.totals))


def compare(day: Day, played: Played, receiver: Receiver) -> Comparison:
    """The script against the API's answers, the archive and the webhooks."""
    expected = day.expected
    archived = Counter(str(session["reason"]) for session in played.sessions)
    notified = Counter(str(item.data["session"]["reason"]) for item in receiver.of("session.closed"))
    received = receiver.of("session.closure_message")
    closure_messages = Counter(str(item.data["language"]) for item in received)
    sessions = expected.reasons.total()
    reasons = [
        CountRow(reason, expected.reasons[reason], (archived[reason], notified[reason]))
        for reason in sorted(expected.reasons | archived | notified, key=lambda reason: (-expected.reasons[reason], reason))
    ]
    return Comparison(
        reasons,
        [
            CountRow(language, expected.closure_messages[language], (closure_messages[language],))
            for language in sorted(expected.closure_messages | closure_messages)
        ],
        [
            CountRow("entries taken", expected.entries, (played.taken,)),
            CountRow("entries of sessions", expected.entries - expected.late, (_sum(played, "entries"),)),
            CountRow("late entries", expected.late, (_sum(played, "late_entries"),)),
            CountRow("sessions opened", sessions, (played.opened,)),
            CountRow("different sessions archived", sessions, (len({session["id"] for session in played.sessions}),)),
            CountRow("sessions with a user", expected.interactive, (_sum(played, "interactive"),)),
            CountRow("webhooks with a wrong signature", 0, (receiver.forged,)),
            CountRow("closure messages after the end", 0, (receiver.late_closure_messages(),)),
        ],
        {str(item.data["language"]): str(item.data["text"]) for item in reversed(received)},
    )


def _sum(played: Played, field: str) -> int:
    return sum(session[field] for session in played.sessions)


def show(console: Console, comparison: Comparison, played: Played) -> None:
    """Print all of it."""
    total = CountRow("all", sum(row.expected for row in comparison.reasons), _sums(comparison.reasons))
    console.print(
        _table("Sessions by close reason", ("scripted", "GET /v1/sessions", "webhooks"), [*comparison.reasons, total]),
        _table("Closure messages by language", ("scripted", "received and verified"), comparison.closure_messages),
        *(f"  {language}  {comparison.texts[language]}" for language in sorted(comparison.texts)),
        "",
        _table("And also", ("scripted", "seen"), comparison.totals),
        _page(played.page),
        sep="\n",
    )


def _sums(rows: list[CountRow]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(row.seen for row in rows), strict=True)))


def _table(title: str, columns: tuple[str, ...], rows: list[CountRow]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        style = None if row.agrees else "bold red"
        table.add_row(row.name, f"{row.expected:,}", *(f"{count:,}" for count in row.seen), style=style)
    return table


def _page(sessions: list[JsonDict]) -> Group:
    """A page of `GET /v1/sessions`, in short."""
    columns = ("opened", "closed", "user", "channel", "reason", "rule", "outcome", "entries")
    table = Table(title=f"GET /v1/sessions?bot=demo&limit={len(sessions)}", title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column == "entries" else "left")
    for session in sessions:
        times = (session["opened_at"][_TIMES], session["closed_at"][_TIMES])
        names = ("user_id", "channel", "reason", "closing_rule", "outcome", "entries")
        table.add_row(*times, *(str(session[name]) for name in names))
    return Group(table)
