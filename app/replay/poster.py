"""Replays lines through the API: posts batches, retries entries that got a 503, and counts the answers."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import httpx
import msgspec
from msgspec import Struct, structs

from app.clock import monotonic_ms
from app.domain.errors import Fault
from app.replay.lines import BATCH_ENTRIES, EntryLine, Pace, batches_of

PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TIMEOUT_S = 30.0
_BUSY = frozenset({429, 502, 503, 504})
_NDJSON = {"content-type": "application/x-ndjson"}
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


class ReplayStopped(Exception):
    """The replay ended early: the remaining lines were not posted. The message says why."""


class _Batch(Struct, frozen=True):
    answers: list[EntryAnswer]


_decode_batch = msgspec.json.Decoder(_Batch).decode


_decode_problem = msgspec.json.Decoder(ProblemDetails).decode


def api_client(url: str, key: str | None) -> httpx.AsyncClient:
    """A client of the API at `url`, without the environment's proxies."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)


class Poster:
    """Posts one bot's entries. `patience_s` limits the tries of one batch; `retries` counts the repeated ones."""

    def __init__(self, client: httpx.AsyncClient, *, bot: str, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._path = f"/v1/bots/{bot}/messages/batch"
        self._patience_s = patience_s
        self.retries = 0

    async def post(self, batch: Sequence[EntryLine]) -> list[EntryAnswer]:
        """One answer for each line, in order. Lines without a final answer are posted again with the same ids.

        Raises `ReplayStopped` if the whole batch is refused, or if lines have no final answer within `patience_s`.
        """
        answers: dict[int, EntryAnswer] = {}
        give_up_ms = monotonic_ms() + self._patience_s * 1000
        for attempt in count():
            unanswered = [line for line in batch if line.number not in answers]
            got, pause_s = await self._try(unanswered)
            final = [pair for pair in zip(unanswered, got, strict=bool(got)) if not _is_busy(pair[1])]
            # A duplicate in a later try is the entry of an earlier try, whose answer was lost.
            answers |= {
                line.number: structs.replace(answer, duplicate=answer.duplicate and not attempt) for line, answer in final
            }
            if len(answers) == len(batch):
                break
            pause_s = pause_s or min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            if monotonic_ms() + pause_s * 1000 > give_up_ms:
                raise ReplayStopped(f"line {unanswered[0].number}: no answer for {self._patience_s:g} s; replay the file again")
            self.retries += 1
            await asyncio.sleep(pause_s)
        return [answers[line.number] for line in batch]

    async def _try(self, lines: Sequence[EntryLine]) -> tuple[list[EntryAnswer], float]:
        """The answers, empty if all lines must be posted again, and the `Retry-After` in seconds, 0 without one."""
        try:
            reply = await self._client.post(self._path, content=b"\n".join(line.body for line in lines), headers=_NDJSON)
        except httpx.TransportError:
            return [], 0.0
        if reply.status_code in _BUSY:
            return [], _retry_after_s(reply)
        if reply.status_code != httpx.codes.OK:
            raise ReplayStopped(f"line {lines[0].number}: {_problem(reply).text}")
        return _decode_batch(reply.content).answers, 0.0


async def replay(
    lines: Iterable[EntryLine],
    *,
    poster: Poster,
    speed: float = 0.0,
    most: int = BATCH_ENTRIES,
    on_batch: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Post all lines, at `speed` times real time or (0) at once; calls `on_batch` after each batch. Raises `ReplayStopped`."""
    tally = Tally()
    began_ms = monotonic_ms()
    async for batch in batches_of(lines, most=most, pace=Pace(speed)):
        for line, answer in zip(batch, await poster.post(batch), strict=True):
            tally.add(line, answer)
        tally.elapsed_s = (monotonic_ms() - began_ms) / 1000
        tally.retries = poster.retries
        on_batch(tally)
    return tally


def _is_busy(answer: EntryAnswer) -> bool:
    return answer.error is not None and answer.error.status in _BUSY


def _retry_after_s(reply: httpx.Response) -> float:
    value = reply.headers.get("retry-after", "")
    return min(float(value), _LONGEST_PAUSE_S) if value.isdigit() else 0.0


def _problem(reply: httpx.Response) -> ProblemDetails:
    try:
        problem = _decode_problem(reply.content)
    except msgspec.DecodeError:
        problem = ProblemDetails()
    return problem if problem.text != "answered 0" else ProblemDetails(reply.status_code)
