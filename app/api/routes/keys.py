"""API keys: create, list, change, rotate, revoke.

`admin` is the highest scope: it makes keys of any scope, also scopes that the asking key does not have. An admin whose key is
limited to some bots makes keys for those bots alone, and sees and revokes only keys that reach no further.
"""

from datetime import datetime
from typing import Annotated, Any, get_args
from uuid import UUID

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, Field, field_validator
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import AdminEngineDep, Administering, ChangingDep, ClockDep, KeyScope, Principal, SettingsDep, found, id_of
from app.api.fields import ABOUT_NAME, Body, GivenInstant, Instant, LimitOverrides, Name, SlugText, UuidText, limit
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers, refuses
from app.archive import audit, bots, keys
from app.archive.tables import instant
from app.domain.entry import ID_PATTERN
from app.domain.errors import Fault
from app.domain.instants import DAY_MS, ms_of, rfc3339
from app.errors import Conflict, Invalid
from app.ids import new_id, new_key
from app.ingest.limits import over_quota

router = APIRouter(prefix="/v1/keys", tags=["keys"])

_KeyPath = Annotated[str, Path(description="Id of the key.", json_schema_extra={"format": "uuid"})]
_SCOPES = "`ingest` posts entries and closes sessions, `read` queries, `admin` configures."


def _each_once(scopes: list[KeyScope]) -> list[KeyScope]:
    return [scope for scope in get_args(KeyScope) if scope in scopes]


_ABOUT_EXPIRY = Field(description="From when on it is refused; null: it does not expire.")
_ABOUT_NOTE = Field(description="Your own words about the key.", examples=["rotated each quarter"])
_Note = Annotated[str, Field(min_length=1, max_length=1000, pattern=ID_PATTERN)]


_DAY_S = DAY_MS // 1000


class KeyLimitOverrides(LimitOverrides):
    """Limits of a key in place of those of the settings; null, or left out: the setting's."""

    rate_entries: Annotated[int | None, limit("rate_entries")] = None
    rate_bytes: Annotated[int | None, limit("rate_bytes")] = None
    rate_requests: Annotated[int | None, limit("rate_requests")] = None


class NewKey(Body):
    """A key to create."""

    name: Annotated[Name, ABOUT_NAME]
    scopes: Annotated[
        list[KeyScope], Field(min_length=1, max_length=3, description=_SCOPES, examples=[["ingest"]]), AfterValidator(_each_once)
    ]
    bots: Annotated[
        list[SlugText] | None,
        Field(min_length=1, max_length=1000, description="The bots that it covers; null for all.", examples=[["shop"]]),
    ] = None
    expires_at: Annotated[GivenInstant | None, _ABOUT_EXPIRY] = None
    note: Annotated[_Note | None, _ABOUT_NOTE] = None
    limits: Annotated[
        KeyLimitOverrides | None,
        Field(description="Its own limits; those of the key that creates it if left out. Only a key for all bots may set them."),
    ] = None


class KeyChange(Body):
    """Fields to change; a field that is left out stays as it is."""

    name: Annotated[Name | None, ABOUT_NAME] = None
    expires_at: Annotated[GivenInstant | None, _ABOUT_EXPIRY] = None
    note: Annotated[_Note | None, _ABOUT_NOTE] = None
    limits: Annotated[
        KeyLimitOverrides | None,
        Field(description="All of them anew: what is left out is as the settings say. Only a key for all bots may set them."),
    ] = None

    @field_validator("name")
    @classmethod
    def _needs_a_name(cls, name: str | None) -> str:
        if name is None:
            raise ValueError("a key has a name: leave `name` out to keep it")
        return name


class RotateKey(Body):
    """How a key is replaced."""

    previous_valid_s: Annotated[
        int, Field(ge=0, le=30 * _DAY_S, description="How long the old key stays valid, too, in s.", examples=[3600])
    ] = _DAY_S


class KeyView(BaseModel):
    """A key, without the key itself."""

    id: Annotated[UuidText, Field(description="Id of the key.")]
    name: Annotated[str, Field(description="For people.", examples=["the shop's bot"])]
    prefix: Annotated[str, Field(description="How the key begins.", examples=["adj_7Qk2"])]
    scopes: Annotated[list[KeyScope], Field(description=_SCOPES, examples=[["ingest"]])]
    bots: Annotated[list[str] | None, Field(description="The bots that it covers; null for all.", examples=[["shop"]])]
    created_at: Annotated[Instant, Field(description="When it was created.")]
    created_by: Annotated[UuidText | None, Field(description="Id of the key that created it; null: created at the command line.")]
    expires_at: Annotated[Instant | None, _ABOUT_EXPIRY]
    last_used_at: Annotated[
        Instant | None, Field(description="When a request was last accepted with it, to a minute; null: never.")
    ]
    note: Annotated[str | None, _ABOUT_NOTE]
    limits: Annotated[KeyLimitOverrides, Field(description="Its own limits.")]
    revoked_at: Annotated[Instant | None, Field(description="When it was revoked, if it was.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "KeyView":
        return cls(**_fields(row))


class KeyCreated(KeyView):
    """A new key with the key itself, which is stored nowhere."""

    key: Annotated[
        str,
        Field(
            description="The key, for `Authorization: Bearer …`. No other answer shows it.",
            examples=["adj_7Qk2m0Yb9sT4vXwZ1aC3dE5fG6hJ8kL0nP2qR4sT6u"],
        ),
    ]

    @classmethod
    def with_key(cls, row: Row[Any], key: str) -> "KeyCreated":
        return cls(**_fields(row), key=key)


class KeyPage(BaseModel):
    """Keys in the order of their creation."""

    keys: Annotated[list[KeyView], Field(description="The keys of this page.")]
    next: Next


@router.post("", status_code=201, responses=refuses(Conflict))
async def create_key(
    new: NewKey, clock: ClockDep, changing: ChangingDep, settings: SettingsDep, *, principal: Administering
) -> KeyCreated:
    """Create a key. The key itself is in this answer and in no other."""
    if new.bots is None or new.limits is not None:
        principal.require_all_bots()
    key, key_id = new_key(), new_id(clock.now_ms())
    async with changing(principal) as change:
        await _check_bots(change.conn, principal, new.bots or [])
        if await keys.count(change.conn) >= settings.max_keys:
            raise over_quota("max_keys", settings.max_keys, "keys")
        row = await keys.create(
            change.conn,
            key_id,
            key,
            name=new.name,
            scopes=list(new.scopes),
            bots=new.bots,
            created_by=principal.key.id,
            expires_at=new.expires_at,
            note=new.note,
            limits=principal.key.limits if new.limits is None else new.limits.stored(),
        )
        await change.record("key.created", key_id, bot=audit.only(new.bots), after=_audited(row))
    return KeyCreated.with_key(row, key)


@router.get("", **answers(KeyPage))
async def list_keys(engine: AdminEngineDep, principal: Administering, asked: Paged) -> JsonResponse:
    """Keys in the order of their creation, revoked ones too."""
    page = Page(asked, of="keys", place=UUID)
    async with engine.connect() as conn:
        after = None if page.after is None else str(page.after)
        rows = await keys.page(conn, within=principal.key.bots, after=after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: UUID(str(row.id)), KeyView.of)
    return JsonResponse({"keys": shown, "next": following})


@router.patch("/{key_id}", responses=refuses(Conflict))
async def change_key(key_id: _KeyPath, wanted: KeyChange, changing: ChangingDep, principal: Administering) -> KeyView:
    """Change a key's name, note, expiry or limits. Scopes and bots stay: create another key for others. 409 for a revoked key."""
    changes = wanted.model_dump(exclude_unset=True)
    if "limits" in changes:
        principal.require_all_bots()
        changes["limits"] = (wanted.limits or KeyLimitOverrides()).stored()
    async with changing(principal) as change:
        before = _not_revoked(await _key(change.conn, principal, key_id))
        row = await keys.change(change.conn, before.id, **changes) if changes else before
        await change.record("key.changed", row.id, bot=audit.only(row.bots), before=_audited(before), after=_audited(row))
    return KeyView.of(row)


@router.post("/{key_id}/rotate", status_code=201, responses=refuses(Conflict))
async def rotate_key(
    key_id: _KeyPath, clock: ClockDep, changing: ChangingDep, principal: Administering, *, rotate: RotateKey | None = None
) -> KeyCreated:
    """Create a key with the same rights, limits and saved views; the old one expires after an overlap. 409 for a revoked key.

    The new key does not expire, whatever the old one's expiry was.
    """
    until = instant(clock.now_ms() + (rotate or RotateKey()).previous_valid_s * 1000)
    key, new = new_key(), new_id(clock.now_ms())
    async with changing(principal) as change:
        old = _not_revoked(await _key(change.conn, principal, key_id))
        row = await keys.create(
            change.conn,
            new,
            key,
            name=old.name,
            scopes=old.scopes,
            bots=old.bots,
            created_by=principal.key.id,
            note=old.note,
            limits=old.limits,
        )
        await keys.copy_views(change.conn, old.id, to=new)
        expires_at = until if old.expires_at is None else min(old.expires_at, until)
        await change.record(
            "key.rotated", old.id, bot=audit.only(old.bots), new=new, previous_valid_until=rfc3339(ms_of(expires_at))
        )
        await keys.change(change.conn, old.id, expires_at=expires_at)
    return KeyCreated.with_key(row, key)


@router.delete("/{key_id}", status_code=204)
async def revoke_key(
    key_id: _KeyPath,
    changing: ChangingDep,
    principal: Administering,
    *,
    created: Annotated[
        bool, Query(description="Whether to revoke the keys that it created, too, and those that they created.")
    ] = False,
) -> None:
    """Revoke a key; within 2 seconds no process accepts it. Revoking it again is no error."""
    async with changing(principal) as change:
        row = await _key(change.conn, principal, key_id)
        more = await keys.created_by(change.conn, row.id) if created else []
        revoked = [each for each in [row, *more] if each.revoked_at is None]
        # Recorded first: a key may revoke itself, and a revoked key records nothing.
        for each in revoked:
            await change.record("key.revoked", str(each.id), bot=audit.only(each.bots), before=_audited(each))
        for each in revoked:
            await keys.revoke(change.conn, str(each.id))


async def _key(conn: AsyncConnection, principal: Principal, key_id: str) -> Row[Any]:
    row = await keys.find(conn, id_of("key", key_id))
    return found(row, "key", key_id, seen=lambda row: _reaches_no_further(row, principal))


def _not_revoked(row: Row[Any]) -> Row[Any]:
    if row.revoked_at is not None:
        raise Conflict("the key is revoked", hint="create another one")
    return row


async def _check_bots(conn: AsyncConnection, principal: Principal, names: list[str]) -> None:
    """Refuse bots that do not exist and bots that the key does not cover, in the same words."""
    absent = await bots.missing(conn, names)
    faults = tuple(
        Fault(f"bots[{at}]", f"there is no bot {name!r}", "name bots that exist")
        for at, name in enumerate(names)
        if name in absent or not principal.covers(name)
    )
    if faults:
        raise Invalid("the key would be for bots that do not exist", faults=faults)


def _reaches_no_further(row: Row[Any], principal: Principal) -> bool:
    within = principal.key.bots
    return within is None or (row.bots is not None and within.issuperset(row.bots))


def _audited(row: Row[Any]) -> dict[str, Any]:
    """The fields of a key that an admin chooses."""
    return {name: _fields(row)[name] for name in ("name", "scopes", "bots", "expires_at", "note", "limits")}


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "bots": row.bots,
        "created_at": rfc3339(ms_of(row.created_at)),
        "created_by": row.created_by,
        "expires_at": _instant(row.expires_at),
        "last_used_at": _instant(row.last_used_at),
        "note": row.note,
        "limits": row.limits,
        "revoked_at": _instant(row.revoked_at),
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(ms_of(at))
