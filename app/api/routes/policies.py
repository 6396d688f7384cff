"""A bot's policy: read it, replace it, list its versions; presets, and what a policy would do before it is saved.

A request that replaces a policy names by `If-Match` the version that it was made from, so that no change is lost unseen. Only
version 1, which the bot was created with, may be replaced without.
"""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Response
from pydantic import BaseModel, Field
from sqlalchemy import Row

from app.api.auth import Administering, AnyKey, found
from app.api.dependencies import ChangingDep, ClockDep, EngineDep, SandboxesDep
from app.api.fields import BotPath, Id, Instant, PolicyToSave, PolicyValues
from app.api.paging import Next, Page, Paged
from app.api.responses import JsonResponse, answers, refuses
from app.api.routes.bots import bot_row
from app.archive import policies
from app.archive.tables import instant
from app.clock import Clock
from app.domain.errors import Fault
from app.domain.instants import ms_of, rfc3339
from app.domain.policy.describe import describe, notices, policy_view
from app.domain.policy.model import Policy
from app.domain.policy.parse import policy_from
from app.domain.policy.presets import PRESETS
from app.domain.records import EventType
from app.errors import Invalid, PreconditionRequired, StaleVersion
from app.live.sandbox import SandboxClocks

router = APIRouter(prefix="/v1", tags=["policies"])

FIRST_VERSION = 1
_IF_MATCH = re.compile(r'\s*(\*|(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*)\s*')
PolicyBody = Annotated[PolicyToSave, Body()]
IfMatch = Annotated[str | None, Header(description="The `ETag` of the version that this change was made from.", examples=['"1"'])]
_Notices = Annotated[
    list[str],
    Field(description="Sentences about settings that are deprecated or never take effect.", examples=[[]]),
]
_Words = Annotated[
    list[str],
    Field(
        description="What the policy does, a sentence each.",
        examples=[["After 15 minutes of silence it closes by itself; any entry restarts the clock."]],
    ),
]


class SavedPolicy(BaseModel):
    """One version of a policy, as it was saved."""

    version: Annotated[int, Field(description="Number of the version, from 1.", examples=[2])]
    policy: Annotated[PolicyToSave, Field(description="The saved values: a preset's name and overrides, or fields.")]
    effective_at: Annotated[Instant, Field(description="Since when it holds, in the bot's own time.")]
    changed_at: Annotated[Instant, Field(description="When it was saved.")]
    changed_by: Annotated[Id | None, Field(description="Id of the key that saved it; null if it was not saved by API.")]

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


class TimelineStep(BaseModel):
    """One thing that happens to a session in which the user says one thing and nothing more."""

    after_minutes: Annotated[int, Field(description="Minutes since the user's entry.", examples=[15])]
    event: Annotated[EventType, Field(description="The event that is emitted.", examples=["session.closed"])]
    what: Annotated[str, Field(description="The step in words.", examples=["closes as `inactivity`"])]


class ChannelDescription(BaseModel):
    """What a policy does on one channel."""

    words: _Words
    timeline: Annotated[list[TimelineStep], Field(description="The life of a session after one entry by the user.")]


class PolicyDescription(ChannelDescription):
    """What a policy does, before it is saved."""

    policy: Annotated[PolicyValues, Field(description="The value of every field, from the preset and the defaults, too.")]
    channels: Annotated[
        dict[str, ChannelDescription], Field(description="By channel, for the channels that have overrides.", examples=[{}])
    ]
    notices: _Notices


@router.get("/bots/{bot}/policy")
async def read_policy(bot: BotPath, engine: EngineDep, _: Administering, response: Response) -> PolicyView:
    """The policy that holds. Send its `ETag` as `If-Match` to replace it."""
    async with engine.connect() as conn:
        await bot_row(conn, bot)
        row = found(await policies.latest(conn, bot), "bot", bot)
    response.headers["ETag"] = etag(row.version)
    return PolicyView.with_policy(row, policy_from(row.policy))


@router.put("/bots/{bot}/policy", responses=refuses(StaleVersion, PreconditionRequired))
async def replace_policy(
    bot: BotPath,
    policy: PolicyBody,
    *,
    clock: ClockDep,
    sandboxes: SandboxesDep,
    changing: ChangingDep,
    principal: Administering,
    response: Response,
    if_match: IfMatch = None,
) -> PolicyView:
    """Save the next version. It holds for open sessions too: their deadlines are moved in the background."""
    wanted = policy_from(policy)
    async with changing(principal) as change:
        present = await bot_row(change.conn, bot)
        before = found(await policies.latest(change.conn, bot), "bot", bot)
        _check_match(if_match, before.version)
        row = await policies.add(
            change.conn,
            bot,
            version=before.version + 1,
            policy=policy,
            effective_at=instant(await _own_time_ms(present, clock, sandboxes)),
            key_id=principal.key.id,
        )
        await change.record("policy.changed", bot, bot=bot, version=row.version, policy=policy)
    response.headers["ETag"] = etag(row.version)
    return PolicyView.with_policy(row, wanted)


@router.get("/bots/{bot}/policy/versions")
async def list_policy_versions(bot: BotPath, engine: EngineDep, _: Administering, asked: Paged) -> PolicyVersions:
    """Every version, the latest first, with who saved it and when."""
    page = Page(asked, of=["policy versions", bot], place=int)
    async with engine.connect() as conn:
        await bot_row(conn, bot)
        rows = await policies.versions_of(conn, bot, before=page.after, limit=page.probe)
    shown, following = page.cut(rows, lambda row: int(row.version))
    return PolicyVersions(versions=[SavedPolicy.of(row) for row in shown], next=following)


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
    """What a policy would do, in words and as a timeline, channel by channel; 422 with every fault of it."""
    return JsonResponse(describe(policy_from(policy)))


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


async def _own_time_ms(bot: Row[Any], clock: Clock, sandboxes: SandboxClocks) -> int:
    """Now, by the bot's own clock."""
    own_ms = await sandboxes.command_ms(bot.id, bot.clock_mode)
    return clock.now_ms() if own_ms is None else own_ms


def _saved(row: Row[Any]) -> dict[str, Any]:
    return {
        "version": row.version,
        "policy": row.policy,
        "effective_at": rfc3339(ms_of(row.effective_at)),
        "changed_at": rfc3339(ms_of(row.changed_at)),
        "changed_by": row.changed_by,
    }
