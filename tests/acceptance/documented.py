"""The examples of a document, played on a running server; `python -m tests.acceptance.documented FILE` writes them anew.

An example is a block of `http` (a request) followed by one of `json` (its answer). In an answer `"…": "…"` stands for more
fields and a last `"…"` for more items; what differs at each run (`VOLATILE`) must be of the same kind. In a request `{session}`,
`{endpoint}`, `{key}` and `{delivery}` stand for the id that was answered last, and `{ann}` for ann's first session.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.serving import Serving, folder, serving, until
from tests.receiver import Receiver

HOOK = "http://127.0.0.1:9000/hook"
MORE = "…"
WIDTH = 118
VOLATILE = frozenset(
    {
        "created_at",
        "updated_at",
        "changed_at",
        "queued_at",
        "started_at",
        "next_attempt_at",
        "delivered_at",
        "expires_at",
        "last_used_at",
        "previous_secret_expires_at",
        "previous_valid_until",
        "revoked_at",
        "at",
        "id",
        "key_id",
        "key",
        "prefix",
        "secret",
        "next",
        "endpoint_id",
        "delivery_id",
        "changed_by",
        "created_by",
        "completed_at",
        "requested_at",
        "before",
        "duration_ms",
        "request_id",
        "target",
        "instance",
        "last_event_id",
        "saved_at",
    }
)
_EXAMPLE = re.compile(r"```http\n(?P<request>.*?)```\n(?P<between>\s*)```json\n(?P<answer>.*?)```", re.DOTALL)
_SECRET = re.compile(r"^(adj_|whsec_).+")
_POLLS, _POLL_S = 200, 0.05
_ARCHIVED_S = 5
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Example:
    """One request and the answer that the document gives for it."""

    request: str
    answer: str
    place: tuple[int, int]  # of the answer's text in the document


def examples(document: str) -> list[Example]:
    return [Example(found["request"], found["answer"], found.span("answer")) for found in _EXAMPLE.finditer(document)]


class Player:
    """Sends the examples' requests one after the other, on one server."""

    def __init__(self, client: httpx.Client, *, hook: str) -> None:
        self._client = client
        self._hook = hook
        self._known: dict[str, str] = {}

    def play(self, example: Example, *, until: Callable[[Any], bool]) -> Any:  # noqa: ANN401 - JSON
        """The real answer; a question is asked again until `until` says yes, or for 10 s: archive and webhooks follow."""
        head, _, body = example.request.partition("\n\n")
        first, *lines = head.strip().splitlines()
        method, path = self._filled(first).split(" ", 1)
        headers = dict(line.split(": ", 1) for line in lines)
        if body.strip():
            headers.setdefault("Content-Type", "application/json")
        content, answer = self._filled(body).strip(), None
        for _ in range(_POLLS if method == "GET" else 1):
            reply = self._client.request(method, path, content=content, headers=headers)
            answer = json.loads(reply.text.replace(self._hook, HOOK)) if reply.content else None
            if until(answer):
                break
            time.sleep(_POLL_S)
        self._learn(path, answer)
        return answer

    def _filled(self, text: str) -> str:
        for name, value in self._known.items():
            text = text.replace(f"{{{name}}}", value)
        return text.replace(HOOK, self._hook)

    def _learn(self, path: str, answer: Any) -> None:  # noqa: ANN401 - JSON
        if not isinstance(answer, dict):
            return
        if isinstance(answer.get("session_id"), str):
            self._known["session"] = answer["session_id"]
            self._known.setdefault("ann", answer["session_id"])
        for part, name in (("/endpoints", "endpoint"), ("/keys", "key")):
            if path.endswith(part) and "id" in answer:
                self._known[name] = answer["id"]
        if answer.get("deliveries"):
            self._known["delivery"] = answer["deliveries"][0]["id"]


def differences(documented: Any, real: Any, where: str = "") -> Iterator[str]:  # noqa: ANN401 - JSON
    """The differences between the document and the server."""
    name = where.rpartition(".")[2]
    if isinstance(documented, dict) and isinstance(real, dict):
        yield from _fields(documented, real, where)
    elif isinstance(documented, list) and isinstance(real, list):
        listed = documented[:-1] if documented[-1:] == [MORE] else documented
        if len(listed) > len(real) or (listed is documented and len(listed) != len(real)):
            yield f"{where}: {len(listed)} items, really {len(real)}"
        for index, (one, other) in enumerate(zip(listed, real, strict=False)):
            yield from differences(one, other, f"{where}[{index}]")
    elif (
        documented != real
        and not (name in VOLATILE and _kind(documented) == _kind(real))
        and _masked(documented) != _masked(real)
    ):
        yield f"{where}: {documented!r}, really {real!r}"


def _fields(documented: dict[str, Any], real: dict[str, Any], where: str) -> Iterator[str]:
    missing = documented.keys() - real.keys() - {MORE}
    unsaid = real.keys() - documented.keys() if MORE not in documented else set()
    if missing or unsaid:
        yield f"{where}: not there {sorted(missing)}, not said {sorted(unsaid)}"
    for name in documented.keys() & real.keys():
        yield from differences(documented[name], real[name], f"{where}.{name}")


def _kind(value: object) -> type:
    return type(value)


def _masked(value: object) -> object:
    return _UUID.sub("uuid", value) if isinstance(value, str) else value


def refreshed(document: str, player: Player) -> str:
    """The document with the real answers, cut where the present ones are cut."""
    parts, at = [], 0
    for example in examples(document):
        real = player.play(example, until=lambda _: True)
        if "/clock/advance" in example.request:
            time.sleep(_ARCHIVED_S)
        said = json.loads(example.answer) if example.answer.strip() else real
        parts += [document[at : example.place[0]], pretty(_without_secrets(_cut(said, real))), "\n"]
        at = example.place[1]
    return "".join([*parts, document[at:]])


def _cut(said: Any, real: Any) -> Any:  # noqa: ANN401 - JSON
    if isinstance(said, dict) and isinstance(real, dict):
        if MORE in said:
            return {name: MORE if name == MORE else _cut(said[name], real.get(name)) for name in said}
        return {name: _cut(said.get(name), value) for name, value in real.items()}
    if isinstance(said, list) and isinstance(real, list) and said[-1:] == [MORE]:
        return [*(_cut(one, other) for one, other in zip(said[:-1], real, strict=False)), MORE]
    if isinstance(said, list) and isinstance(real, list):
        return [_cut(said[index] if index < len(said) else None, item) for index, item in enumerate(real)]
    return real


def _without_secrets(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Without keys and webhook secrets; those of a test server are worthless, and look like real ones."""
    if isinstance(value, dict):
        return {
            name: _SECRET.sub(r"\1…", item) if isinstance(item, str) else _without_secrets(item) for name, item in value.items()
        }
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def pretty(value: Any, indent: str = "") -> str:  # noqa: ANN401 - JSON
    """JSON that is on one line wherever it fits."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        items = [f"{deeper}{json.dumps(name, ensure_ascii=False)}: {pretty(item, deeper)}" for name, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    return "[\n" + ",\n".join(deeper + pretty(item, deeper) for item in value) + f"\n{indent}]"


def ready(running: Serving) -> None:
    """Wait until the worker has a heartbeat, which `/readyz` shows."""
    until(lambda: httpx.get(f"{running.url}/readyz").json()["status"] == "ready")


def main(paths: list[str]) -> None:
    for path in map(Path, paths):
        with folder() as var_dir, serving(var_dir) as running, Receiver() as receiver, running.client() as client:
            ready(running)
            path.write_text(refreshed(path.read_text(), Player(client, hook=receiver.url("/hook"))))


if __name__ == "__main__":
    main(sys.argv[1:])
