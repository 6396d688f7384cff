"""A sandbox bot on a running Adjourn, as its developer has it: entries in by HTTP, time moved by HTTP, sessions out by HTTP."""

import time
from collections.abc import Callable, Sized
from datetime import datetime
from typing import Any, TypeVar

import httpx

from tests.receiver import Received, Receiver

Json = dict[str, Any]
S = TypeVar("S", bound=Sized)
WITHIN_S = 20


class Bot:
    """`user_id` is `ann` unless it is given; conversations are named as they are by default, `web:ann`."""

    def __init__(self, client: httpx.Client, receiver: Receiver, name: str) -> None:
        self.client = client
        self.receiver = receiver
        self.name = name
        self.secret = ""
        self._closed = 0

    @property
    def path(self) -> str:
        return f"/v1/bots/{self.name}"

    def say(self, role: str, text: str | None = None, **fields: object) -> Json:
        """The answer to an entry."""
        entry = {"user_id": "ann", "role": role, "text": text, **fields}
        return self.ask("POST", f"{self.path}/messages", {name: value for name, value in entry.items() if value is not None})

    def wait(self, *, minutes: float = 0, hours: float = 0, seconds: float = 0) -> None:
        """Let time pass for this bot, and what falls due in it happen."""
        self.ask("POST", f"{self.path}/clock/advance", {"seconds": hours * 3600 + minutes * 60 + seconds})

    def sessions(self, conversation: str = "web:ann", *, count: int) -> list[Json]:
        """The conversation's sessions, the first opened first, once there are so many."""
        return self._polled(lambda: self._listed(f"/v1/conversations/{conversation}/sessions", {"bot": self.name}), count)

    def archived(self, *, count: int, **wanted: str) -> list[Json]:
        """Closed sessions of all conversations, as dashboards find them, once there are so many."""
        self._closed = max(self._closed, count)
        return self._polled(lambda: self._listed("/v1/sessions", {"bot": self.name, **wanted}), count)

    def session(self, answer: Json) -> Json:
        """The session that an entry belongs to."""
        return self.ask("GET", f"/v1/sessions/{answer['session_id']}")

    def entries(self, answer: Json) -> list[Json]:
        """All entries of the session that an entry belongs to, in order."""
        listed: list[Json] = self.ask("GET", f"/v1/sessions/{answer['session_id']}/messages")["messages"]
        return listed

    def unassigned(self, *, count: int) -> list[Json]:
        """The entries without a session, the first received first, once there are so many."""
        return self._polled(lambda: self.ask("GET", f"{self.path}/unassigned-entries")["entries"][::-1], count)

    def close(self, answer: Json) -> Json:
        return self.ask("POST", f"/v1/sessions/{answer['session_id']}/close")

    def summary(self, **wanted: str) -> Json:
        """Sums over the closed sessions, once the archive holds those that `archived` found: a list shows them before it does."""
        _until(self._summed, self._closed)
        return self.ask("GET", f"{self.path}/summary", params=wanted)

    def _summed(self) -> range:
        found = self.ask("GET", f"{self.path}/summary", params={"developers": "true"})
        return range(found["sessions"] + found["not_counted"])

    def put_variable(self, name: str, value: object, *, ttl_s: float | None = None) -> None:
        body = {"value": value} if ttl_s is None else {"value": value, "ttl_s": ttl_s}
        self.ask("PUT", f"{self.path}/conversations/web:ann/variables/{name}", body)

    def variables(self) -> list[str]:
        return list(self.ask("GET", f"{self.path}/conversations/web:ann/variables")["variables"])

    def context(self) -> Json:
        return self.ask("GET", f"{self.path}/conversations/web:ann/context")

    def save_policy(self, **policy: object) -> httpx.Response:
        """The raw reply, refused or not."""
        return self.client.put(f"{self.path}/policy", json=policy, headers={"If-Match": "*"})

    def subscribe(self, *events: str) -> None:
        """Have webhooks sent to the receiver."""
        made = self.ask("POST", f"{self.path}/endpoints", {"url": self.receiver.url(f"/{self.name}"), "events": list(events)})
        self.secret = made["secret"]

    def webhooks(self, *, count: int) -> list[Received]:
        """The webhooks so far, in the order of their coming, once there are so many; each verified."""
        received = _until(lambda: self.receiver.at(f"/{self.name}"), count)
        for webhook in received:
            webhook.verify(self.secret)
        return received

    def ask(self, method: str, path: str, json: object = None, *, params: dict[str, str] | None = None) -> Json:
        reply = self.client.request(method, path, json=json, params=params)
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        answer: Json = reply.json()
        return answer

    def _listed(self, path: str, params: dict[str, str]) -> list[Json]:
        listed: list[Json] = self.ask("GET", path, params={**params, "limit": "200"})["sessions"]
        return listed[::-1]

    def _polled(self, read: Callable[[], list[Json]], count: int) -> list[Json]:
        found = _until(read, count)
        assert len(found) == count, found
        return found


def _until(read: Callable[[], S], count: int) -> S:
    """The result of `read` once it has so many items; fails if that takes too long."""
    give_up = time.monotonic() + WITHIN_S
    while len(found := read()) < count:
        assert time.monotonic() < give_up, f"{len(found)} instead of {count} within {WITHIN_S} s: {found}"
        time.sleep(0.02)
    return found


def reasons(sessions: list[Json]) -> list[str | None]:
    return [session["reason"] for session in sessions]


def minutes(session: Json, start: str = "opened_at", end: str = "closed_at") -> float:
    """How long after one of a session's instants another one came."""
    return (datetime.fromisoformat(session[end]) - datetime.fromisoformat(session[start])).total_seconds() / 60
