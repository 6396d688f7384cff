"""The direct way of one entry: the protocol hands over a plain request, and its answer is written as bytes.

Building a scope, a task and three ASGI messages costs more than all that is done with an entry. Promised: the same bytes as from
`app.api.ingest`. Refused: every request that is not plain, and every one whose key and path were not admitted there since the
configuration changed last; those take the way through ASGI.
"""

import structlog
from msgspec import Struct

from app.api.access import ENTRY_ROUTE, AccessLog
from app.api.errors import Headers, error_of, problem_bytes
from app.api.middleware import request_id_of
from app.clock import monotonic_ms
from app.domain.errors import DomainError
from app.errors import AdjournError
from app.ingest.intake import Receipt, encode
from app.ingest.limits import Admission, Spendings, rate_headers
from app.ingest.wire import entry_from
from app.resources import Resources

_LONGEST_BODY = 16_384  # longer ones are counted as they arrive (`Resources.bodies`), which is for ASGI
_log = structlog.get_logger()


class DirectReply(Struct, frozen=True):
    """An answer: its status, the lines of its head after the server's own, and its body."""

    status: int
    head: bytes
    body: bytes


class DirectRequest:
    """A request on the direct way. The protocol overrides `reply`, which is called once."""

    __slots__ = ("access", "admission", "began_ms", "body", "headers", "path", "spent")

    def __init__(self, admission: Admission, path: bytes, headers: Headers) -> None:
        self.admission = admission
        self.path = path
        self.headers = headers
        self.body = b""
        self.spent: Spendings = []
        self.began_ms = monotonic_ms()
        self.access: AccessLog | None = None

    def reply(self, reply: DirectReply) -> None:
        raise NotImplementedError

    def answer(self, result: Receipt | Exception) -> None:
        """Answer with a receipt or a refusal."""
        request_id = request_id_of({"headers": self.headers})
        if isinstance(result, Receipt):
            body = encode(result)
            head = b"content-type: application/json\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n"
            self.reply(DirectReply(200, head % (len(body), _lines(rate_headers(self.spent)), request_id.encode()), body))
            self._log(200, request_id)
            return
        path = self.path.decode()
        if not isinstance(result, AdjournError | DomainError):
            _log.error("request failed", method="POST", path=path, request_id=request_id, exc_info=result)
        status, headers, body = problem_bytes(error_of(result), instance=path, request_id=request_id)
        self.reply(DirectReply(status, _lines([*headers, (b"x-request-id", request_id.encode())]), body))
        self._log(status, request_id)

    def _log(self, status: int, request_id: str) -> None:
        if self.access is not None:
            key, bot = self.admission.key.name, self.admission.bot.id
            self.access.write(
                route=ENTRY_ROUTE, method="POST", status=status, began_ms=self.began_ms, key=key, bot=bot, request_id=request_id
            )


class DirectIngest:
    """The direct way into one process."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.max_body_bytes = min(resources.settings.max_body_bytes, _LONGEST_BODY)
        self.operations_port = resources.settings.operations_port
        self._access = AccessLog(resources.settings.access_log)
        self._max_age_ms = resources.settings.config_max_age_s * 1000

    def admission(self, authorization: bytes, path: bytes) -> Admission | None:
        """The admission of this header and this path; None where the request has to go through ASGI."""
        resources = self._resources
        return resources.admissions.find(authorization, path, now_ms=resources.clock.now_ms(), max_age_ms=self._max_age_ms)

    def start(self, request: DirectRequest) -> bool:
        """Take the entry of a request that has arrived; False if its rates must be asked for first: nothing was done."""
        try:
            return self._start(request)
        except Exception as error:  # noqa: BLE001 - every error is answered; an unexpected one is logged there
            request.answer(error)
            return True

    def _start(self, request: DirectRequest) -> bool:
        request.access = self._access
        admission = request.admission
        entry = entry_from(request.body)
        spent = admission.rates.spend(len(request.body))
        if spent is None:
            return False
        request.spent = spent
        self._resources.intake.start(admission.bot, entry, request.answer)
        return True


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
