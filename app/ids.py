"""Makes new ids, API keys and webhook secrets, and the digest that a key is found by.

Ids are UUIDv7, so rows lie in the order they were made in. A session's id is not made here: it is derived
from the session (`app.domain.strand.session_id`).
"""

from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256
from secrets import randbits, token_bytes, token_urlsafe
from uuid import UUID
from zlib import crc32

KEY_PREFIX = "adj_"
KEY_BYTES = 32
_KEY_LENGTH = 43  # characters of 256 bits in base64
_CHECKSUM_LENGTH = 6  # characters of 32 bits in base64
SHOWN_PREFIX_LENGTH = len(KEY_PREFIX) + 6
WEBHOOK_SECRET_PREFIX = "whsec_"  # noqa: S105 - how Standard Webhooks marks a secret, not one
WEBHOOK_SECRET_BYTES = 32


def new_id(now_ms: int) -> str:
    """A UUIDv7 of this instant, as text."""
    return str(UUID(int=now_ms << 80 | 7 << 76 | randbits(12) << 64 | 2 << 62 | randbits(62)))


def new_key() -> str:
    """An API key, `adj_…`: 256 random bits that are shown once and kept nowhere, and a checksum of them."""
    key = KEY_PREFIX + token_urlsafe(KEY_BYTES)
    return key + _checksum(key)


def is_mistyped(key: str) -> bool:
    """Whether a key of the form that has a checksum does not match it. Keys of 0.1.0 have none, and match."""
    length = len(KEY_PREFIX) + _KEY_LENGTH
    return len(key) == length + _CHECKSUM_LENGTH and key.startswith(KEY_PREFIX) and key[length:] != _checksum(key[:length])


def _checksum(key: str) -> str:
    return urlsafe_b64encode(crc32(key.encode("utf-8", "surrogatepass")).to_bytes(4)).decode().rstrip("=")


def key_digest(key: str) -> bytes:
    """The digest that a key is stored and found by. A key has 256 random bits, so a plain SHA-256 reveals nothing."""
    return sha256(key.encode("utf-8", "surrogatepass")).digest()


def shown_prefix(key: str) -> str:
    """The part of a key that lists may show, so that people can distinguish keys."""
    return key[:SHOWN_PREFIX_LENGTH]


def new_webhook_secret() -> str:
    """A secret as Standard Webhooks writes them: `whsec_` and 256 random bits in base64."""
    return WEBHOOK_SECRET_PREFIX + b64encode(token_bytes(WEBHOOK_SECRET_BYTES)).decode()
