"""Settings are read from the environment, listed in `.env.example`, and refused with their name if they are wrong."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from app.settings import PrivateAddresses, Settings, normalised_database_url

ROOT = Path(__file__).resolve().parents[2]
ONLY_COMPOSE = {"POSTGRES_PASSWORD=", "REDIS_MAXMEMORY="}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def _default_as_text(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_env_example_lists_every_setting_with_its_description_and_default() -> None:
    """After the head, the file is exactly the settings in their order: none is missing, and none does nothing."""
    paragraphs = (ROOT / ".env.example").read_text().strip().split("\n\n")
    expected = [
        f"# {field.description}\n# {name.upper()}={_default_as_text(field.default)}"
        for name, field in Settings.model_fields.items()
    ]
    head = paragraphs[: -len(expected)]

    assert paragraphs[len(head) :] == expected
    assert {line.removeprefix("# ") for line in "\n".join(head).splitlines() if line.endswith("=")} == ONLY_COMPOSE


def test_env_example_sets_nothing() -> None:
    """A copy of it changes no setting and contains no password."""
    lines = (ROOT / ".env.example").read_text().splitlines()

    assert all(not line or line.startswith("#") for line in lines)


def test_every_setting_has_a_description_with_its_unit() -> None:
    """A setting that is a time or a size names its unit."""
    units = {"ms": "milliseconds", "s": "seconds", "bytes": "bytes", "mb": "mb"}
    for name, field in Settings.model_fields.items():
        assert field.description, name
        unit = units.get(name.rpartition("_")[2])
        assert unit is None or unit in field.description.lower(), name


def test_the_environment_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` is read by `Settings.load` only, and only for settings that the environment does not set."""
    Path(".env").write_text("PORT=9000\nHOST=0.0.0.0\nSOMETHING_ELSE=1\n")
    monkeypatch.setenv("PORT", "9001")

    assert (Settings.load().port, Settings.load().host) == (9001, "0.0.0.0")  # noqa: S104 - compared, not listened on
    assert Settings().host == "127.0.0.1"


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compose passes an unset variable as an empty one."""
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", "")

    assert Settings().redis_url is None
    assert Settings().embedded


@pytest.mark.parametrize(
    ("given", "normalised"),
    (
        ("postgres://u:p@h:5433/d", "postgresql+asyncpg://u:p@h:5433/d"),
        ("postgresql://u:p%40@h/d", "postgresql+asyncpg://u:p%40@h/d"),
        ("postgresql+asyncpg://u@/d?host=/tmp/x", "postgresql+asyncpg://u@/d?host=/tmp/x"),
        ("postgresql:///d?host=/tmp/x", "postgresql+asyncpg:///d?host=/tmp/x"),
        ("postgresql://u@h/d?sslmode=require", "postgresql+asyncpg://u@h/d?ssl=require"),
    ),
)
def test_any_form_of_a_database_url_is_normalised(given: str, normalised: str) -> None:
    """The URL that a hosting company gives works unchanged."""
    assert normalised_database_url(given) == normalised
    assert Settings(database_url=given).database_url == normalised


@pytest.mark.parametrize(
    ("name", "value"),
    (("database_url", "mysql://h/d"), ("redis_url", "localhost:6379"), ("port", "70000"), ("tick_ms", "0")),
)
def test_an_impossible_value_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The error names the setting."""
    monkeypatch.setenv(name.upper(), value)

    with pytest.raises(pydantic.ValidationError) as refused:
        Settings()
    assert refused.value.errors()[0]["loc"] == (name,)


def test_urls_are_not_shown() -> None:
    """A URL may contain a password, so printed settings leave it out."""
    shown = repr(Settings(redis_url="redis://:sesame@h", database_url="postgresql://u:sesame@h/d"))

    assert "sesame" not in shown


@pytest.mark.parametrize(
    ("redis_url", "allowed", "expected"),
    (
        (None, "", "loopback"),
        ("redis://h", "", False),
        ("redis://h", "true", True),
        ("redis://h", "loopback", "loopback"),
        (None, "false", False),
    ),
)
def test_private_webhooks_are_for_local_installations(
    monkeypatch: pytest.MonkeyPatch, redis_url: str | None, allowed: str, expected: PrivateAddresses
) -> None:
    """By default only an installation with embedded servers sends webhooks to its own machine; none to the rest of a network."""
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE", allowed)

    assert Settings(redis_url=redis_url).private_webhooks_allowed == expected
