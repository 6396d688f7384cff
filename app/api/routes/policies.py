"""A bot's policy: read it, replace it, list its versions; presets, and what a policy would do before it is saved.

A request that changes a policy names by `If-Match` the version that it was made from, so that no change is lost unseen. Only
version 1, which the bot was created with, may be replaced without.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Path, Response
from pydantic import BaseModel, Field, WithJsonSchema
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api.auth import AdminEngineDep, Administering, AnyKey, Changing, ChangingDep, ClockDep, Principal, SandboxesDep, found
from app.api.fields import BotPath, Instant, JsonObject, PolicyToSave, PolicyValues, UuidText, component
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers, refuses
from app.api.routes.bots import bot_row
from app.archive import bots
from app.archive.tables import instant
from app.clock import Clock
from app.domain.errors import Fault
from app.domain.instants import ms_of, rfc3339
from app.domain.policy.describe import describe, notices, policy_view
from app.domain.policy.model import Policy
from app.domain.policy.parse import PRESETS, policy_from
from app.domain.records import EventType
from app.errors import Invalid, PreconditionRequired, StaleVersion
from app.live.sandbox import SandboxClocks

router = APIRouter(prefix="/v1", tags=["policies"])

FIRST_VERSION = 1
_ETAGS = r'\s*(\*|(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*)\s*'
_IF_MATCH = re.compile(_ETAGS)
_NUMBER = re.compile(r"[0-9]{1,9}")
_CHANGES = refuses(StaleVersion, PreconditionRequired)
PolicyBody = Annotated[PolicyToSave, Body()]
PatchBody = Annotated[JsonObject, component("PolicyChange"), Body()]
_VersionPath = Annotated[
    str, Path(description="Number of the version.", examples=["1"], json_schema_extra={"pattern": "^[0-9]{1,9}$"})
]
IfMatch = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "pattern": f"^{_ETAGS}$", "examples": ['"1"']}),  # `_check_match` says it in words
    Header(description="The `ETag` of the version that this change was made from."),
]
_Notices = Annotated[
    list[str],
    Field(description="Sentences about settings that are deprecated or never take effect.", examples=[[]]),
]
_Words = Annotated[
    list[str],
    Field(
        description="The effects of the policy, a sentence each.",
        examples=[["After 15 minutes of silence it closes by itself; any entry restarts the clock."]],
    ),
]


class SavedPolicy(BaseModel):
    """One version of a policy, as it was saved."""

    version: Annotated[int, Field(description="Number of the version, from 1.", examples=[2])]
    policy: Annotated[PolicyToSave, Field(description="The saved values: a preset's name and overrides, or fields.")]
    effective_at: Annotated[Instant, Field(description="Since when it holds, in the bot's own time.")]
    changed_at: Annotated[Instant, Field(description="When it was saved.")]
    changed_by: Annotated[UuidText | None, Field(description="Id of the key that saved it; null if it was not saved by API.")]

    @classmethod
    def of(cls, row: Row[Any]) -> "SavedPolicy":
        return cls(**_saved(row))


class PolicyView(SavedPolicy):
    """The version of a policy that holds."""

    resolved: Annotated[PolicyValues, Field(description="The value of every field, from the preset and the defaults, too.")]
    notices: _Notices

    @classmethod
    def with_policy(cls, row: Row[Any], policy: Policy) -> "PolicyView":
        return cls(**_saved(row), resolved=policy_view(policy), notices=notices(policy))


class PolicyVersions(BaseModel):
    """Versions of a policy, the latest first."""

    versions: Annotated[list[SavedPolicy], Field(description="The versions of this page.")]
    next: Next


class PresetView(BaseModel):
    """A preset."""

    name: Annotated[str, Field(description="The name, for `preset` in a policy.", examples=["kore"])]
    values: Annotated[PolicyToSave, Field(description="The fields that the preset sets.")]
    resolved: Annotated[PolicyValues, Field(description="The whole policy that these values and the defaults come to.")]


class PresetList(BaseModel):
    """All presets."""

    presets: Annotated[list[PresetView], Field(description="The presets.")]


StepKind = Literal[EventType, "silence"]


class TimelineStep(BaseModel):
    """One thing that happens to a session in which the user says one thing and nothing more."""

    after_minutes: Annotated[int, Field(description="Minutes since the user's entry.", examples=[15])]
    event: Annotated[StepKind, Field(description="The event that is emitted, or `silence`.", examples=["session.closed"])]
    what: Annotated[str, Field(description="The step in words.", examples=["closes as `inactivity`"])]


class ChannelDescription(BaseModel):
    """The effects of a policy on one channel."""

    words: _Words
    timeline: Annotated[list[TimelineStep], Field(description="The life of a session after one entry by the user.")]


class PolicyDescription(ChannelDescription):
    """The effects of a policy, before it is saved."""

    policy: Annotated[PolicyValues, Field(description="The value of every field, from the preset and the defaults, too.")]
    channels: Annotated[
        dict[str, ChannelDescription], Field(description="By channel, for the channels that have overrides.", examples=[{}])
    ]
    notices: _Notices


class PolicyWriter:
    """Saves the next version of a bot's policy."""

    def __init__(self, *, changing: Changing, clock: Clock, sandboxes: SandboxClocks) -> None:
        self._changing = changing
        self._clock = clock
        self._sandboxes = sandboxes

    async def save(
        self,
        principal: Principal,
        bot: str,
        wanted: Callable[[AsyncConnection, Row[Any]], Awaitable[dict[str, Any]]],
        *,
        if_match: str | None,
        response: Response,
    ) -> PolicyView:
        """Save what `wanted` makes of the latest version. Raise `StaleVersion`, `PreconditionRequired`, `InvalidPolicy`."""
        async with self._changing(principal) as change:
            present = await bot_row(change.conn, bot)
            before = found(await bots.latest_policy(change.conn, bot), "bot", bot)
            _check_match(if_match, before.version)
            saved = await wanted(change.conn, before)
            policy = policy_from(saved)
            row = await bots.add_policy(
                change.conn,
                bot,
                version=before.version + 1,
                policy=saved,
                effective_at=instant(await self._own_time_ms(present)),
                key_id=principal.key.id,
            )
            await change.record("policy.changed", bot, bot=bot, version=row.version, before=before.policy, after=saved)
        response.headers["ETag"] = etag(row.version)
        return PolicyView.with_policy(row, policy)

    async def _own_time_ms(self, bot: Row[Any]) -> int:
        """Now, by the bot's own clock."""
        own_ms = await self._sandboxes.command_ms(bot.id, bot.clock_mode)
        return self._clock.now_ms() if own_ms is None else own_ms


async def _writer(changing: ChangingDep, clock: ClockDep, sandboxes: SandboxesDep) -> PolicyWriter:
    return PolicyWriter(changing=changing, clock=clock, sandboxes=sandboxes)


WriterDep = Annotated[PolicyWriter, Depends(_writer)]


@router.get("/bots/{bot}/policy")
async def read_policy(bot: BotPath, engine: AdminEngineDep, _: Administering, response: Response) -> PolicyView:
    """The policy that holds. Send its `ETag` as `If-Match` to replace it."""
    async with engine.connect() as conn:
        await bot_row(conn, bot)
        row = found(await bots.latest_policy(conn, bot), "bot", bot)
    response.headers["ETag"] = etag(row.version)
    return PolicyView.with_policy(row, policy_from(row.policy))


@router.put("/bots/{bot}/policy", responses=_CHANGES)
async def replace_policy(
    principal: Administering, bot: BotPath, policy: PolicyBody, writer: WriterDep, *, response: Response, if_match: IfMatch = None
) -> PolicyView:
    """Save the next version. It holds for open sessions too: their deadlines are moved in the background."""

    async def given(_conn: AsyncConnection, _before: Row[Any]) -> dict[str, Any]:
        return policy

    return await writer.save(principal, bot, given, if_match=if_match, response=response)


@router.patch("/bots/{bot}/policy", responses=_CHANGES)
async def change_policy(
    principal: Administering, bot: BotPath, patch: PatchBody, writer: WriterDep, *, response: Response, if_match: IfMatch = None
) -> PolicyView:
    """Save the next version: the latest one with some values changed, by JSON merge patch (RFC 7396).

    `{"inactivity_minutes": 20}` sets a value, `null` removes what was saved, so that the preset's value or the default holds.
    """

    async def merged(_conn: AsyncConnection, before: Row[Any]) -> dict[str, Any]:
        changed: dict[str, Any] = merge_patch(before.policy, patch)
        return changed

    return await writer.save(principal, bot, merged, if_match=if_match, response=response)


@router.post("/bots/{bot}/policy/versions/{version}/restore", responses=_CHANGES)
async def restore_policy(
    principal: Administering,
    bot: BotPath,
    version: _VersionPath,
    writer: WriterDep,
    *,
    response: Response,
    if_match: IfMatch = None,
) -> PolicyView:
    """Save an earlier version again, as the next version."""

    async def restored(conn: AsyncConnection, _before: Row[Any]) -> dict[str, Any]:
        row = await bots.policy_version(conn, bot, int(version)) if _NUMBER.fullmatch(version) else None
        policy: dict[str, Any] = found(row, "version", version).policy
        return policy

    return await writer.save(principal, bot, restored, if_match=if_match, response=response)


@router.get("/bots/{bot}/policy/versions", **answers(PolicyVersions))
async def list_policy_versions(bot: BotPath, engine: AdminEngineDep, _: Administering, asked: Paged) -> JsonResponse:
    """Every version, the latest first, with who saved it and when."""
    page = Page(asked, of=["policy versions", bot], place=int)
    async with engine.connect() as conn:
        await bot_row(conn, bot)
        rows = await bots.policy_versions(conn, bot, before=page.after, limit=page.probe)
    shown, following = page.fit(rows, lambda row: int(row.version), SavedPolicy.of)
    return JsonResponse({"versions": shown, "next": following})


@router.get("/presets")
async def list_presets(_: AnyKey) -> PresetList:
    """The presets: `{"preset": "aivo"}` in a policy stands for these values, and fields set beside it override them."""
    return PresetList(
        presets=[
            PresetView(name=name, values=values, resolved=policy_view(policy_from({"preset": name})))
            for name, values in PRESETS.items()
        ]
    )


@router.post("/policies/validate", **answers(PolicyDescription))
async def validate_policy(policy: PolicyBody, _: AnyKey) -> JsonResponse:
    """The effects that a policy would have, in words and as a timeline, channel by channel; 422 with every fault of it."""
    return JsonResponse(describe(policy_from(policy)))


def merge_patch(target: Any, patch: Any) -> Any:  # noqa: ANN401 - any JSON
    """`target` changed by a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def etag(version: int) -> str:
    return f'"{version}"'


def _check_match(if_match: str | None, version: int) -> None:
    if if_match is None:
        if version > FIRST_VERSION:
            raise PreconditionRequired("say which version this replaces", hint="send the ETag of GET …/policy as If-Match")
        return
    if not _IF_MATCH.fullmatch(if_match):
        fault = Fault("If-Match", "is no ETag", f"send the ETag as it came, in its quotation marks: {etag(version)}")
        raise Invalid("If-Match cannot be read", faults=(fault,))
    named = {tag.strip().removeprefix("W/") for tag in if_match.split(",")}
    if "*" not in named and etag(version) not in named:
        raise StaleVersion(f"version {version} is the latest", hint="read it, and decide again on what it says")


def _saved(row: Row[Any]) -> dict[str, Any]:
    return {
        "version": row.version,
        "policy": row.policy,
        "effective_at": rfc3339(ms_of(row.effective_at)),
        "changed_at": rfc3339(ms_of(row.changed_at)),
        "changed_by": row.changed_by,
    }
