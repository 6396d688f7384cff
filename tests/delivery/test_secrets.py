"""Secrets of endpoints are encrypted at rest, under keys that can be replaced."""

import stat
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
from sqlalchemy import text

from app.archive.engine import make_engine
from app.delivery.secret_box import SecretBox, encrypt_plain, new_secrets_key, rotate_secrets
from app.errors import CannotStart
from app.log import redacted
from app.resources import open_resources
from app.settings import Settings, environment_with
from app.supervisor.serve import secrets_key_file

SECRET, EARLIER = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD", "whsec_AAAAsBQIhrscChlQIMV+b5sSYspob7oD"
_ADD = """
    INSERT INTO endpoints (id, bot_id, url, events, secret, previous_secret)
    VALUES (gen_random_uuid(), 'shop', 'http://127.0.0.1/', '{}', :secret, :earlier)
"""


async def stored(database_url: str) -> list[tuple[str, str | None]]:
    engine = make_engine(database_url)
    async with engine.connect() as conn:
        rows = (await conn.execute(text("SELECT secret, previous_secret FROM endpoints"))).all()
    await engine.dispose()
    return [(row.secret, row.previous_secret) for row in rows]


@pytest.fixture
async def two_endpoints(database_url: str) -> str:
    """A database as version 0.1.0 left it: the secrets as they are."""
    engine = make_engine(database_url)
    async with engine.begin() as conn:
        await conn.execute(text("INSERT INTO bots (id, name) VALUES ('shop', 'shop')"))
        await conn.execute(text(_ADD), [{"secret": SECRET, "earlier": EARLIER}, {"secret": SECRET, "earlier": None}])
    await engine.dispose()
    return database_url


async def test_secrets_of_0_1_0_are_encrypted_once(two_endpoints: str) -> None:
    """Read before and after; a second start has nothing to do."""
    box = SecretBox([new_secrets_key()])
    encrypted = [await encrypt_plain(two_endpoints, box) for _ in range(2)]
    rows = await stored(two_endpoints)

    assert encrypted == [2, 0]
    assert "whsec_" not in str(rows)
    assert sorted(box.decrypt(secret) for row in rows for secret in row if secret) == sorted([SECRET, SECRET, EARLIER])
    assert box.decrypt(SECRET) == SECRET


async def test_a_key_is_replaced_without_a_secret_that_cannot_be_read(two_endpoints: str) -> None:
    """Old alone, new before old, rotated, new alone. Secrets that no key can read stay as they were."""
    old, new = new_secrets_key(), new_secrets_key()
    await encrypt_plain(two_endpoints, SecretBox([old]))
    before = await stored(two_endpoints)
    with pytest.raises(ValueError, match="SECRETS_KEY does not have"):
        await rotate_secrets(two_endpoints, SecretBox([new]))
    unchanged = await stored(two_endpoints)
    rotated = await rotate_secrets(two_endpoints, SecretBox([new, old]))
    rows = await stored(two_endpoints)

    assert unchanged == before
    assert rotated == 2
    assert {SecretBox([new]).decrypt(secret) for row in rows for secret in row if secret} == {SECRET, EARLIER}
    with pytest.raises(ValueError, match="SECRETS_KEY does not have"):
        SecretBox([old]).decrypt(rows[0][0])


def test_the_command_makes_keys_and_rotates(two_endpoints: str) -> None:
    """As an operator does it, with the keys in the environment."""
    environment = environment_with(database_url=two_endpoints)

    def run(command: str, **more: str) -> str:
        words = [sys.executable, "-m", "app.cli", "secrets", command]
        return subprocess.run(
            words, env=environment | more, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()

    old, new = run("new-key"), run("new-key")

    assert old != new
    assert run("rotate", SECRETS_KEY=old).startswith("2 endpoints")
    assert run("rotate", SECRETS_KEY=f"{new},{old}").startswith("2 endpoints")
    assert run("rotate", SECRETS_KEY=new).startswith("2 endpoints")


async def test_a_deployment_without_a_key_does_not_start(
    redis_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its start and not at its first webhook."""
    monkeypatch.delenv("SECRETS_KEY")
    with pytest.raises(CannotStart, match="SECRETS_KEY is not set"):
        async with open_resources(Settings(redis_url=redis_url, database_url=database_url, shards=4)):
            pass


@pytest.mark.parametrize("wrong", ("secret", "A" * 43, "A" * 43 + "=;" + "B" * 43 + "="))
def test_a_key_of_another_form_is_refused_without_its_text(wrong: str, tmp_path: Path) -> None:
    """From the variable and from the file."""
    (tmp_path / "key").write_text(wrong)
    with pytest.raises(pydantic.ValidationError, match="secrets new-key"):
        Settings(secrets_key=wrong)
    with pytest.raises(pydantic.ValidationError, match="secrets new-key"):
        Settings(secrets_key_file=tmp_path / "key")


def test_an_embedded_installation_makes_its_key_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that this user alone may read; the next start finds it. None is made where Postgres is not ours."""
    monkeypatch.delenv("SECRETS_KEY", raising=False)
    settings = Settings(var_dir=tmp_path)
    made = secrets_key_file(settings)
    assert made is not None
    content = made.read_text()
    again = secrets_key_file(settings)

    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert (again, made.read_text()) == (made, content)
    assert Settings(secrets_key_file=made).secret_keys == [content.strip()]
    assert secrets_key_file(Settings(var_dir=tmp_path / "other", database_url="postgresql://x/y")) is None
    assert secrets_key_file(Settings(var_dir=tmp_path / "other", secrets_key=new_secrets_key())) is None


@pytest.mark.parametrize("text_", (SECRET, "Bearer abc", "https://u:pass@host/", "adj_" + "x" * 43))
def test_texts_that_are_stored_hold_no_secret(text_: str) -> None:
    """The echo of a receiver and the details of an audit entry are redacted as log lines are."""
    shown = redacted({"url": [text_], "secret": "x"})

    assert text_ not in str(shown)
    assert "pass" not in str(shown)
    assert shown["secret"] == "[redacted]"
