"""What came of the day beside what was scripted, as tables; and whether they agree."""

from collections import Counter

from msgspec import Struct
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table

from app.demo.day import Day
from app.demo.play import Json, Played
from app.demo.receiver import Receiver

_TIMES = slice(11, 19)


class Row(Struct, frozen=True):
    """One thing that was scripted, and what each side saw of it."""

    name: str
    expected: int
    seen: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        return all(count == self.expected for count in self.seen)


class Comparison(Struct, frozen=True):
    """All that is compared; `said` is the first closure message of each language, to look at."""

    reasons: list[Row]
    farewells: list[Row]
    rest: list[Row]
    said: dict[str, str]

    @property
    def agrees(self) -> bool:
        return all(row.agrees for row in (*self.reasons, *self.farewells, *self.rest))


def compare(day: Day, played: Played, receiver: Receiver) -> Comparison:
    """The script against the API's answers, the archive and the webhooks."""
    expected = day.expected
    archived = Counter(str(session["reason"]) for session in played.sessions)
    told = Counter(str(item.data["session"]["reason"]) for item in receiver.of("session.closed"))
    heard = receiver.of("session.closure_message")
    farewells = Counter(str(item.data["language"]) for item in heard)
    sessions = expected.reasons.total()
    reasons = [
        Row(reason, expected.reasons[reason], (archived[reason], told[reason]))
        for reason in sorted(expected.reasons | archived | told, key=lambda reason: (-expected.reasons[reason], reason))
    ]
    return Comparison(
        reasons,
        [
            Row(language, expected.farewells[language], (farewells[language],))
            for language in sorted(expected.farewells | farewells)
        ],
        [
            Row("entries taken", expected.entries, (played.taken,)),
            Row("entries kept in sessions", expected.entries, (sum(session["entries"] for session in played.sessions),)),
            Row("sessions opened", sessions, (played.opened,)),
            Row("different sessions archived", sessions, (len({session["id"] for session in played.sessions}),)),
            Row("sessions with a user", expected.interactive, (sum(session["interactive"] for session in played.sessions),)),
            Row("webhooks with a wrong signature", 0, (receiver.forged,)),
            Row("farewells told after the end", 0, (receiver.late_farewells(),)),
        ],
        {str(item.data["language"]): str(item.data["text"]) for item in reversed(heard)},
    )


def show(console: Console, comparison: Comparison, played: Played) -> None:
    """Print all of it."""
    total = Row("all", sum(row.expected for row in comparison.reasons), _sums(comparison.reasons))
    console.print(
        _table("Sessions by close reason", ("scripted", "GET /v1/sessions", "webhooks"), [*comparison.reasons, total]),
        _table("Closure messages by language", ("scripted", "received and verified"), comparison.farewells),
        *(f"  {language}  {comparison.said[language]}" for language in sorted(comparison.said)),
        "",
        _table("And also", ("scripted", "seen"), comparison.rest),
        _page(played.page),
        sep="\n",
    )


def _sums(rows: list[Row]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*(row.seen for row in rows), strict=True)))


def _table(title: str, columns: tuple[str, ...], rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        style = None if row.agrees else "bold red"
        table.add_row(row.name, f"{row.expected:,}", *(f"{count:,}" for count in row.seen), style=style)
    return table


def _page(sessions: list[Json]) -> Group:
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
