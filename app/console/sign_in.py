"""Sign-in with an API key: a signed cookie that names the key's digest, and tokens against forged forms.

The cookie holds no key. Each request looks the digest up in this process's configuration, so that a revoked key is signed out
everywhere as soon as it is refused by the API. Signatures are HMAC-SHA256 with a secret that all processes share through Redis.
"""

import hmac
import re
from hashlib import sha256
from secrets import token_hex

from msgspec import Struct

from app.errors import Forbidden
from app.live import keys
from app.live.pipe import Pipe

COOKIE = "adjourn_console"
COOKIE_LIFE_S = 12 * 3600
_COOKIE = re.compile(
    r"(?P<signed>(?P<digest>[0-9a-f]{64})\.(?P<issued_s>\d{1,12})\.(?P<nonce>[0-9a-f]{32}))\.(?P<mac>[0-9a-f]{64})"
)
_SAME_ORIGIN = {"same-origin", "none"}


class SignIn(Struct, frozen=True):
    """The content of a valid cookie."""

    digest: bytes  # of the key that signed in
    csrf: str  # the token that each form of this sign-in carries


class Signer:
    """Issues and reads cookies."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._secret: bytes | None = None

    async def cookie(self, digest: bytes, *, now_ms: int) -> str:
        """The cookie of a key that signs in now."""
        signed = f"{digest.hex()}.{now_ms // 1000}.{token_hex(16)}"
        return f"{signed}.{_mac(await self._shared_secret(), 'cookie', signed)}"

    async def read(self, cookie: str, *, now_ms: int) -> SignIn | None:
        """The sign-in of a cookie; None if this installation did not sign it, or too long ago."""
        parts = _COOKIE.fullmatch(cookie)
        if parts is None or not 0 <= now_ms // 1000 - int(parts["issued_s"]) < COOKIE_LIFE_S:
            return None
        secret = await self._shared_secret()
        if not hmac.compare_digest(parts["mac"], _mac(secret, "cookie", parts["signed"])):
            return None
        return SignIn(bytes.fromhex(parts["digest"]), _mac(secret, "form", parts["nonce"]))

    async def _shared_secret(self) -> bytes:
        if self._secret is None:
            await self._pipe.call("SET", keys.CONSOLE_SECRET, token_hex(32), "NX")
            self._secret = await self._pipe.call("GET", keys.CONSOLE_SECRET)
        return self._secret


def check_origin(fetch_site: str | None) -> None:
    """Raise `Forbidden` for a form that a page of another site sends. A client that sends no `Sec-Fetch-Site` is no browser."""
    if fetch_site is not None and fetch_site not in _SAME_ORIGIN:
        raise Forbidden("this form was sent by another site", hint="open the console itself, and send it there")


def check_token(sign_in: SignIn, given: str) -> None:
    """Raise `Forbidden` unless the form carries the token of this sign-in."""
    if not hmac.compare_digest(given.encode(), sign_in.csrf.encode()):
        raise Forbidden("this form is not of the present sign-in", hint="load the page again, and send it once more")


def _mac(secret: bytes, purpose: str, text: str) -> str:
    return hmac.new(secret, f"{purpose}:{text}".encode(), sha256).hexdigest()
