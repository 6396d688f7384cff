"""The applications that the ingest route is compared with: `python -m bench.targets bare|pydantic FD`.

Each runs behind one uvicorn like the product.

`bare`      reads the body and answers: the upper bound of a Python server on uvicorn
`pydantic`  a plain FastAPI route: a pydantic model in, one awaited script call to Redis, a pydantic model out
"""

import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from redis.asyncio import BlockingConnectionPool, Redis
from starlette.types import ASGIApp, Receive, Scope, Send

from app.domain.entry import EntryType, Role
from app.settings import Settings

# As long as an answer of ours.
ANSWER = (
    b'{"message_id":"r000-000000000","session_id":"019a9f6e-1c00-7a2b-8d39-6b1f6f0b7c11","session":"continued","sequence":12,'
    b'"closes_at":"2026-11-21T10:15:00.000Z","received_at":"2026-11-21T10:00:00.000Z","duplicate":false,"closed":[]}'
)
# A compare-and-set and a write, about what a commit of one entry does.
_SCRIPT = """
local stored = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], KEYS[1])
return stored
"""


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    """An ASGI app that does nothing."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


class EntryIn(BaseModel):
    """The fields that most entries have."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = Field(min_length=1, max_length=256)
    role: Role
    message_id: str | None = Field(default=None, max_length=256)
    channel: str = Field(default="web", pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    type: EntryType = "message"
    text: str | None = Field(default=None, max_length=32_768)
    intent: str | None = None
    language: str | None = None
    tags: list[str] = []
    metadata: dict[str, Any] | None = None


class ReceiptOut(BaseModel):
    """The answer."""

    message_id: str
    session_id: str
    session: str
    sequence: int
    closes_at: str
    received_at: str
    duplicate: bool
    closed: list[str]


def pydantic_app() -> FastAPI:
    """The route that one would write first."""
    app = FastAPI()
    redis = Redis(connection_pool=BlockingConnectionPool.from_url(Settings().redis_url or "", protocol=2))
    script = redis.register_script(_SCRIPT)
    answer = ReceiptOut.model_validate_json(ANSWER)

    @app.post("/entries")
    async def take(entry: EntryIn) -> ReceiptOut:
        await script(
            keys=[f"bench:{entry.user_id}", "bench:messages", "bench:due"],
            args=[entry.model_dump_json(), entry.message_id or "", 1],
        )
        return answer.model_copy(update={"message_id": entry.message_id})

    return app


if __name__ == "__main__":
    app: ASGIApp = bare if sys.argv[1] == "bare" else pydantic_app()
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", access_log=False, server_header=False, log_level="warning"
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
