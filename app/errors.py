"""All refusals of Adjourn, in one tree; `app.api.errors` turns each into RFC 9457 problem details.

AdjournError
├── Unauthenticated        401  no key, or one that is not known
├── Forbidden              403  the key's scopes or bots do not cover this
├── NotFound               404  no such thing, or not one of yours
├── Conflict               409  it exists already, or its state forbids this
├── StaleVersion           412  `If-Match` names a version that is no longer the latest
├── TooLarge               413  a body or a batch over its limit
├── UnsupportedMedia       415  a body of a kind that this route does not read
├── Invalid                422  a body or parameter that says something impossible
├── PreconditionRequired   428  `If-Match` is missing
├── RateLimited            429  more entries or requests than a key or bot may send; retry
└── Unavailable            503  Redis or Postgres does not answer; nothing was lost, retry
"""

from collections.abc import Sequence
from typing import ClassVar

from app.domain.errors import Fault

MOST_FAULTS = 20
"""How many faults an answer shows."""
LONGEST_SHOWN = 200
"""Characters of an answer that come from one name or value of the request, which may be as long as a body."""


class AdjournError(Exception):
    """The root: an expected refusal with a code, a status and words for the caller."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, detail: str, *, hint: str = "", faults: tuple[Fault, ...] = (), retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.faults = faults
        self.retry_after_s = retry_after_s


class Unauthenticated(AdjournError):
    status = 401
    code = "unauthenticated"
    title = "No valid API key"


class Forbidden(AdjournError):
    status = 403
    code = "forbidden"
    title = "The API key does not allow this"


class NotFound(AdjournError):
    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(AdjournError):
    status = 409
    code = "conflict"
    title = "Conflict"


class StaleVersion(AdjournError):
    status = 412
    code = "stale_version"
    title = "Someone else changed it first"


class TooLarge(AdjournError):
    status = 413
    code = "too_large"
    title = "Too large"


class UnsupportedMedia(AdjournError):
    status = 415
    code = "unsupported_media"
    title = "Unsupported media type"


class Invalid(AdjournError):
    status = 422
    code = "invalid"
    title = "The request is not valid"


class PreconditionRequired(AdjournError):
    status = 428
    code = "precondition_required"
    title = "If-Match is required"


class RateLimited(AdjournError):
    """`headers` say which rate was exceeded, and what is left of it."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, *, hint: str, retry_after_s: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(detail, hint=hint, retry_after_s=retry_after_s)
        self.headers = headers


class Unavailable(AdjournError):
    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"


class CannotStart(Exception):
    """A process cannot begin its work; the command line prints this one line and exits with 1. It never reaches HTTP."""
