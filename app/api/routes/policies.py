"""A bot's policy: read it, replace it, look at its versions; presets, and what a policy would do before it is saved.

Whoever replaces a policy says by `If-Match` which version they have read, so that nobody's change is lost unseen. Only the
version that the bot was born with may be replaced unread.
"""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Response
from sqlalchemy import Row

from app.api.auth import Administering, Anyone
from app.api.dependencies import ResourcesDep
from app.api.routes.bots import found_bot
from app.api.saving import saving
from app.api.schemas.common import Cursor, Limit
from app.api.schemas.policies import PolicyToSave, PolicyVersions, PolicyView, Presets, PresetView, SavedPolicy
from app.api.schemas.problems import PRECONDITIONS, PROBLEMS
from app.archive import bots, policies
from app.archive.tables import instant
from app.domain.errors import Fault
from app.domain.policy.describe import describe, policy_view
from app.domain.policy.parse import policy_from
from app.domain.policy.presets import PRESETS
from app.errors import Invalid, PreconditionRequired, StaleVersion
from app.queries.cursor import cursor_of, page_of, place_of
from app.resources import Resources

router = APIRouter(prefix="/v1", tags=["policies"], responses=PROBLEMS)

FIRST_VERSION = 1
_IF_MATCH = re.compile(r'\s*(\*|(W/)?"[^"]*"(\s*,\s*(W/)?"[^"]*")*)\s*')
PolicyBody = Annotated[PolicyToSave, Body()]


@router.get("/bots/{bot}/policy")
async def read_policy(bot: str, resources: ResourcesDep, _: Administering, response: Response) -> PolicyView:
    """The policy that holds; its `ETag` is for `If-Match` when it is replaced."""
    async with resources.engine.connect() as conn:
        found_bot(await bots.find(conn, bot), bot)
        row = found_bot(await policies.latest(conn, bot), bot)
    response.headers["ETag"] = etag(row.version)
    return PolicyView.with_policy(row, policy_from(row.policy))


@router.put("/bots/{bot}/policy", responses=PRECONDITIONS)
async def replace_policy(
    bot: str,
    policy: PolicyBody,
    *,
    resources: ResourcesDep,
    principal: Administering,
    response: Response,
    if_match: Annotated[str | None, Header(description="The `ETag` of the version that this replaces.")] = None,
) -> PolicyView:
    """Save the next version. It counts for open sessions too: their deadlines are moved in the background."""
    wanted = policy_from(policy)
    async with saving(resources, principal) as change:
        present = found_bot(await bots.find(change.conn, bot), bot)
        before = found_bot(await policies.latest(change.conn, bot), bot)
        _check_match(if_match, before.version)
        row = await policies.add(
            change.conn,
            bot,
            version=before.version + 1,
            policy=policy,
            effective_at=instant(await _own_time_ms(resources, present)),
            key_id=principal.key.id,
        )
        await change.record("policy.changed", bot, bot=bot, version=row.version, policy=policy)
    response.headers["ETag"] = etag(row.version)
    return PolicyView.with_policy(row, wanted)


@router.get("/bots/{bot}/policy/versions")
async def list_policy_versions(
    bot: str,
    *,
    resources: ResourcesDep,
    _: Administering,
    limit: Annotated[Limit, Query()] = 50,
    cursor: Annotated[Cursor, Query()] = None,
) -> PolicyVersions:
    """Every version, the latest first, with who saved it and when."""
    of = ["policy versions", bot]
    before = place_of(cursor, of=of, kind=int)
    async with resources.engine.connect() as conn:
        found_bot(await bots.find(conn, bot), bot)
        rows = await policies.versions_of(conn, bot, before=before, limit=limit + 1)
    shown, last = page_of(rows, limit=limit)
    return PolicyVersions(versions=[SavedPolicy.of(row) for row in shown], next=last and cursor_of(last.version, of=of))


@router.get("/presets")
async def list_presets(_: Anyone) -> Presets:
    """The presets: `{"preset": "aivo"}` in a policy stands for these values, and what is set beside it goes over them."""
    return Presets(
        presets=[
            PresetView(name=name, values=values, resolved=policy_view(policy_from({"preset": name})))
            for name, values in PRESETS.items()
        ]
    )


@router.post("/policies/validate")
async def validate_policy(policy: PolicyBody, _: Anyone) -> dict[str, Any]:
    """What a policy would do, in words and as a timeline, channel by channel; 422 with every problem if it says nonsense."""
    return describe(policy_from(policy))


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


async def _own_time_ms(resources: Resources, bot: Row[Any]) -> int:
    """Now, as the bot has it."""
    own_ms = await resources.sandboxes.command_ms(bot.id, bot.clock_mode)
    return resources.clock.now_ms() if own_ms is None else own_ms
