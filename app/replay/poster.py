"""Posts batches of entries, and again what Redis could not take, until each entry has a final answer."""

import asyncio
from collections.abc import Sequence
from itertools import count

import httpx
import msgspec
from msgspec import Struct, structs

from app.clock import monotonic_ms
from app.replay.lines import Line
from app.replay.tally import Answered, Problem

PATIENCE_S = 60.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_TIMEOUT_S = 30.0
_BUSY = frozenset({429, 502, 503, 504})
_NDJSON = {"content-type": "application/x-ndjson"}


class ReplayStopped(Exception):
    """The rest of the file was not posted; the message says why."""


class _Batch(Struct, frozen=True):
    answers: list[Answered]


_decode_batch = msgspec.json.Decoder(_Batch).decode
_decode_problem = msgspec.json.Decoder(Problem).decode


def api_client(url: str, key: str | None) -> httpx.AsyncClient:
    """A client of the API at `url`; the environment's proxies are left aside."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)


class Poster:
    """Posts one bot's entries. `patience_s` is how long it tries one batch, `retries` how often it had to try again."""

    def __init__(self, client: httpx.AsyncClient, *, bot: str, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._path = f"/v1/bots/{bot}/messages/batch"
        self._patience_s = patience_s
        self.retries = 0

    async def post(self, batch: Sequence[Line]) -> list[Answered]:
        """One answer for each line, in order. What had no final answer is posted again with the same ids.

        Raises `ReplayStopped` if the batch as a whole is refused, or nothing helped within `patience_s`.
        """
        answers: dict[int, Answered] = {}
        give_up_ms = monotonic_ms() + self._patience_s * 1000
        for attempt in count():
            rest = [line for line in batch if line.number not in answers]
            got, pause_s = await self._try(rest)
            final = [pair for pair in zip(rest, got, strict=bool(got)) if not _is_busy(pair[1])]
            # A repeat in a later try is the entry of an earlier one, whose answer was lost.
            answers |= {
                line.number: structs.replace(answer, duplicate=answer.duplicate and not attempt) for line, answer in final
            }
            if len(answers) == len(batch):
                break
            pause_s = pause_s or min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
            if monotonic_ms() + pause_s * 1000 > give_up_ms:
                raise ReplayStopped(f"line {rest[0].number}: no answer for {self._patience_s:g} s; replay the file again")
            self.retries += 1
            await asyncio.sleep(pause_s)
        return [answers[line.number] for line in batch]

    async def _try(self, lines: Sequence[Line]) -> tuple[list[Answered], float]:
        """The answers, none if all must be posted again; and how long the API asks to wait first, 0 if it does not say."""
        try:
            reply = await self._client.post(self._path, content=b"\n".join(line.body for line in lines), headers=_NDJSON)
        except httpx.TransportError:
            return [], 0.0
        if reply.status_code in _BUSY:
            return [], _retry_after_s(reply)
        if reply.status_code != httpx.codes.OK:
            raise ReplayStopped(f"line {lines[0].number}: {_problem(reply).words}")
        return _decode_batch(reply.content).answers, 0.0


def _is_busy(answer: Answered) -> bool:
    return answer.error is not None and answer.error.status in _BUSY


def _retry_after_s(reply: httpx.Response) -> float:
    value = reply.headers.get("retry-after", "")
    return min(float(value), _LONGEST_PAUSE_S) if value.isdigit() else 0.0


def _problem(reply: httpx.Response) -> Problem:
    try:
        problem = _decode_problem(reply.content)
    except msgspec.DecodeError:
        problem = Problem()
    return problem if problem.words != "answered 0" else Problem(reply.status_code)
