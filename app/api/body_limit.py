"""Refuses bodies over a limit, whether their length is announced or not, before they are read into memory."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOO_LARGE = 413


class BodyLimit:
    """Starlette's own limit answers in plain text; this one leaves the answer to the app's error handlers."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._max_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # Of the kind that FastAPI lets through while it reads a body.
                raise HTTPException(TOO_LARGE)
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)
