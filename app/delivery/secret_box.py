"""Encrypts the secrets of endpoints, so that a copy of the database signs nothing.

A secret is stored as a Fernet token, AES and HMAC under the first of the keys in SECRETS_KEY; any of them decrypts it. Rows of
version 0.1.0 hold the secret itself: they are read, and encrypted when the schema is brought up to date.
"""

from collections.abc import Sequence
from typing import Self

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import ColumnElement, bindparam, or_, select, true, update

from app.archive.engine import make_single_use_engine
from app.archive.tables import endpoints
from app.errors import CannotStart
from app.ids import WEBHOOK_SECRET_PREFIX
from app.settings import Settings

_COLUMNS = (endpoints.c.secret, endpoints.c.previous_secret)


class SecretBox:
    """The keys of this process; the first one encrypts. Without keys it reads only secrets that are not encrypted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [Fernet(key) for key in keys]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The box of a deployment. Raises `CannotStart` if it has no key."""
        if not settings.secret_keys:
            msg = "SECRETS_KEY is not set: give it the output of `adjourn secrets new-key`, the same for all processes"
            raise CannotStart(msg)
        return cls(settings.secret_keys)

    def encrypt(self, secret: str) -> str:
        return MultiFernet(self._keys).encrypt(secret.encode()).decode()

    def decrypt(self, stored: str) -> str:
        """The secret. Raises `ValueError` if none of the keys encrypted it."""
        if stored.startswith(WEBHOOK_SECRET_PREFIX):
            return stored
        try:
            return MultiFernet(self._keys).decrypt(stored).decode()
        except InvalidToken:
            msg = "the endpoint's secret is encrypted with a key that SECRETS_KEY does not have"
            raise ValueError(msg) from None


def new_secrets_key() -> str:
    """A key for SECRETS_KEY: 256 random bits."""
    return Fernet.generate_key().decode()


async def encrypt_plain(database_url: str, box: SecretBox) -> int:
    """Encrypt the secrets that are stored as they are; returns how many endpoints had one."""
    return await _encrypt(database_url, box, or_(*(column.startswith(WEBHOOK_SECRET_PREFIX) for column in _COLUMNS)))


async def rotate_secrets(database_url: str, box: SecretBox) -> int:
    """Encrypt all secrets with the first key; returns how many endpoints there are. Raises `ValueError` if one cannot be read."""
    return await _encrypt(database_url, box, true())


async def _encrypt(database_url: str, box: SecretBox, which: ColumnElement[bool]) -> int:
    """In one transaction: after a crash all secrets are as they were, or all are encrypted."""
    engine = make_single_use_engine(database_url)
    try:
        async with engine.begin() as conn:
            rows = (await conn.execute(select(endpoints.c.id, *_COLUMNS).where(which).with_for_update())).all()
            changes = [
                {"endpoint": row.id, "one": _again(box, row.secret), "other": _again(box, row.previous_secret)} for row in rows
            ]
            changed = update(endpoints).where(endpoints.c.id == bindparam("endpoint"))
            if changes:
                await conn.execute(changed.values(secret=bindparam("one"), previous_secret=bindparam("other")), changes)
    finally:
        await engine.dispose()
    return len(changes)


def _again(box: SecretBox, stored: str | None) -> str | None:
    return None if stored is None else box.encrypt(box.decrypt(stored))
