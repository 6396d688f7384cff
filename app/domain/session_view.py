"""The one JSON shape in which sessions and messages are told everywhere: the API, webhooks, exports; open or closed alike."""

from typing import Any

from app.domain.explanation import explain
from app.domain.instants import rfc3339, rfc3339_or_none
from app.domain.records import Answer, Dialog, Message, Session, State
from app.domain.rules import variables
from app.domain.strand import Strand

__all__ = ["answer_view", "context_view", "explain", "message_view", "session_view", "variables_view"]

_ROLES = ("user", "bot", "agent", "system")


def session_view(strand: Strand, session: Session) -> dict[str, Any]:
    """A session as JSON. `status` is open or closed; `closes_at` is when an open one would close if nothing more came."""
    is_open = session.closed_at_ms is None
    return {
        "id": session.id,
        "bot": strand.bot,
        "conversation_id": strand.conversation,
        "thread": strand.thread or None,
        "user_id": session.user_id,
        "channel": session.channel,
        "status": "open" if is_open else "closed",
        "opened_at": rfc3339(session.opened_at_ms),
        "opened_by": session.opened_by,
        "opening_rule": session.opening_rule,
        "previous_session_id": session.previous_session_id,
        "closes_at": rfc3339(session.deadline_at_ms) if is_open else None,
        "closed_at": rfc3339_or_none(session.closed_at_ms),
        "reason": session.reason,
        "closing_rule": session.closing_rule,
        "closed_by": session.closed_by,
        "policy_version": session.policy_version,
        "interactive": session.interactive,
        "developer": session.developer,
        "counted": session.counted,
        "trade": session.trade,
        "outcome": session.outcome,
        "contained": session.contained,
        "language": session.language,
        "intent": session.intent,
        "tags": list(session.tags),
        "entries": session.entries,
        "entries_of": {role: getattr(session, f"{role}_entries") for role in _ROLES},
        "interactions": session.interactions,
        "billing_sessions": session.billing_sessions,
        "last_entry_at": rfc3339(session.last_entry_at_ms),
        "first_entry_at_of": {role: rfc3339_or_none(getattr(session, f"first_{role}_at_ms")) for role in _ROLES},
        "last_entry_at_of": {role: rfc3339_or_none(getattr(session, f"last_{role}_at_ms")) for role in _ROLES},
        "first_response_ms": session.first_response_ms,
        "handed_off_at": rfc3339_or_none(session.handed_off_at_ms),
        "escalated_at": rfc3339_or_none(session.escalated_at_ms),
        "resolved_at": rfc3339_or_none(session.resolved_at_ms),
        "survey_sent_at": rfc3339_or_none(session.survey_sent_at_ms),
        "survey_answered_at": rfc3339_or_none(session.survey_answered_at_ms),
        "reminded_at": rfc3339_or_none(session.reminded_at_ms),
    }


def message_view(message: Message) -> dict[str, Any]:
    """A message as JSON: what the bot sent, without what it left out, and its place and instant."""
    view: dict[str, Any] = {
        "message_id": message.message_id,
        "sequence": message.sequence,
        "received_at": rfc3339(message.received_at_ms),
        "sent_at": rfc3339_or_none(message.sent_at_ms),
        "role": message.role,
        "type": message.type,
        "user_id": message.user_id,
        "text": message.text,
        "intent": message.intent,
        "language": message.language,
        "tags": list(message.tags),
    }
    return view | (message.rest or {})


def answer_view(answer: Answer) -> dict[str, Any]:
    """What a bot is told of its entry; the caller adds `duplicate`."""
    return {
        "session_id": answer.session_id,
        "session": answer.session,
        "sequence": answer.sequence,
        "closes_at": rfc3339_or_none(answer.closes_at_ms),
        "received_at": rfc3339(answer.received_at_ms),
        "closed": [{"session_id": ended.session_id, "reason": ended.reason} for ended in answer.closed],
    }


def context_view(state: State) -> dict[str, Any]:
    """The dialog of a conversation as JSON: topic and details, tags of now and of before (the latest last), tones."""
    dialog = state.dialog or Dialog()
    return {
        "context": dialog.context,
        "tags": list(dialog.tags),
        "historic_tags": list(dialog.historic_tags),
        "tones": dialog.tones,
    }


def variables_view(state: State, now_ms: int) -> dict[str, dict[str, Any]]:
    """Name to `value` and `expires_at`, of those that live on at `now_ms`."""
    return {
        name: {"value": variable.value, "expires_at": rfc3339_or_none(variable.expires_at_ms)}
        for name, variable in variables.unexpired(state.variables, now_ms).items()
    }
