"""A conversation's variables and its dialog context, as they live in Redis.

A conversation's id may hold slashes (`:path`), so what its path ends in tells the routes apart. That of one variable comes first:
a variable may be called `context`, but hardly a conversation `web:ann/variables`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import Ingesting, Reading, known_bot
from app.domain.errors import InvalidVariable
from app.domain.records import Command, DeleteVariable, SetVariable, State
from app.domain.session_view import context_view, variables_view
from app.domain.strand import LONGEST_CONVERSATION, Strand
from app.errors import NotFound
from app.resources import Resources

router = APIRouter(prefix="/v1/bots/{bot}/conversations/{conversation_id:path}", tags=["conversations"])

_NO_CONTROL = r"^[^\x00-\x1f\x7f]*$"
Conversation = Annotated[str, Path(min_length=1, max_length=LONGEST_CONVERSATION, pattern=_NO_CONTROL)]
Thread = Annotated[
    str, Query(max_length=256, pattern=_NO_CONTROL, description="the client's session (method `client`) or the help window")
]


class VariableBody(BaseModel):
    """A JSON value of up to 8 KB. Without `ttl_s` it lives until the session closes, with it until that time."""

    model_config = ConfigDict(extra="forbid")

    value: Any
    ttl_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None


@router.get("/variables/{name}")
async def read_variable(
    request: Request, bot: str, conversation_id: Conversation, *, name: str, _: Reading, thread: Thread = ""
) -> dict[str, Any]:
    """One variable: `value` and `expires_at`."""
    found = variables_view(*await _state(request, bot, conversation_id, thread)).get(name)
    if found is None:
        raise NotFound(f"there is no variable {name!r} in this conversation", hint="it may have ended with its session")
    return {"name": name, **found}


@router.get("/context")
async def read_context(
    request: Request, bot: str, conversation_id: Conversation, _: Reading, thread: Thread = ""
) -> dict[str, Any]:
    """Topic and details of the dialog, tags of now and of before (the latest last), tones."""
    state, _now_ms = await _state(request, bot, conversation_id, thread)
    return context_view(state)


@router.get("/variables")
async def list_variables(
    request: Request, bot: str, conversation_id: Conversation, _: Reading, thread: Thread = ""
) -> dict[str, Any]:
    """All variables that live on, by name."""
    return {"variables": variables_view(*await _state(request, bot, conversation_id, thread))}


@router.put("/variables/{name}")
async def set_variable(
    request: Request, bot: str, conversation_id: Conversation, *, name: str, body: VariableBody, _: Ingesting, thread: Thread = ""
) -> dict[str, Any]:
    """Set or replace one. Its TTL counts from now."""
    if "value" not in body.model_fields_set:
        raise InvalidVariable("value", "it is required", "send null to keep a null")
    ttl_ms = None if body.ttl_s is None else max(1, round(body.ttl_s * 1000))
    await _submit(request, Strand(bot, conversation_id, thread), SetVariable(name, body.value, ttl_ms))
    found = variables_view(*await _state(request, bot, conversation_id, thread)).get(
        name, {"value": body.value, "expires_at": None}
    )
    return {"name": name, **found}


@router.delete("/variables/{name}", status_code=204)
async def delete_variable(
    request: Request, bot: str, conversation_id: Conversation, *, name: str, _: Ingesting, thread: Thread = ""
) -> Response:
    """Forget one; nothing happens if there is none of this name."""
    await _submit(request, Strand(bot, conversation_id, thread), DeleteVariable(name))
    return Response(status_code=204)


async def _submit(request: Request, strand: Strand, command: Command) -> None:
    resources: Resources = request.app.state.resources
    at_ms = await resources.sandbox_ms(known_bot(resources.config, strand.bot))
    await resources.ledger.submit(strand, command, at_ms=at_ms)


async def _state(request: Request, bot: str, conversation_id: str, thread: str) -> tuple[State, int]:
    """The state, and the instant that it is looked at."""
    resources: Resources = request.app.state.resources
    at_ms = await resources.sandbox_ms(known_bot(resources.config, bot))
    state = await resources.live.state(Strand(bot, conversation_id, thread))
    return state, resources.clock.now_ms() if at_ms is None else at_ms
