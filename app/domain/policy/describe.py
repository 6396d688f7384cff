"""What a policy will do, in words and as a timeline, before it is saved."""

from collections.abc import Iterator
from typing import Any

from msgspec import json

from app.domain.policy.model import Policy

_LAZY = (
    "Closing `{closing}` is deprecated: a session stays open until its user comes back. "
    "Choose `proactive`, which closes it when the silence is over."
)
_STARTS = {
    "inactivity": "A session starts with the first entry of a conversation in which none is open.",
    "platform": "A session goes from `session.start`, or else from the first entry, to `session.end`, whatever the silence.",
    "client": "A session is what carries one `client_session_id`; several of one user may be open side by side.",
}
_CLOCKS = {
    "any": "any entry restarts the clock",
    "user": "only what the user does restarts the clock, once the user has taken part",
}
_HANDOFFS = {
    "continue": "A hand-off to a human does not end the session.",
    "end": "A hand-off to a human closes it as `handoff`.",
    "split": "A hand-off to a human closes it as `handoff`; what follows is a session of trade `agent`.",
    "pause": "After a hand-off to a human there is no silence until `agent.left`.",
}


def describe(policy: Policy) -> dict[str, Any]:
    """Words, timeline and notices of a policy, and the same for each channel that has overrides; JSON-like."""
    return {
        "policy": policy_view(policy),
        "words": list(_words(policy)),
        "timeline": list(_timeline(policy)),
        "channels": {
            channel: {"words": list(_words(policy.on(channel))), "timeline": list(_timeline(policy.on(channel)))}
            for channel in policy.channels
        },
        "notices": notices(policy),
    }


def policy_view(policy: Policy) -> dict[str, Any]:
    """The policy as JSON-like values with every field; `policy_from` makes the same policy of it."""
    view: dict[str, Any] = json.decode(json.encode(policy))
    return view


def notices(policy: Policy) -> list[str]:
    """What a policy's owner should know of it (K25)."""
    closings = [policy.closing, *(policy.on(channel).closing for channel in policy.channels)]
    lazy = dict.fromkeys(closing for closing in closings if closing != "proactive")
    return [_LAZY.format(closing=closing) for closing in lazy]


def _words(policy: Policy) -> Iterator[str]:
    yield _STARTS[policy.method]
    yield _silence(policy)
    if policy.method == "inactivity" and policy.closing == "proactive":
        yield from _spoken(policy)
    yield _HANDOFFS[policy.on_handoff]
    ending = [name for name, does in _signals(policy) if does]
    going_on = [name for name, does in _signals(policy) if not does]
    yield f"It is closed by {_listed(['`chat.closed`', '`session.end`', '`interrupted`', *ending])}."
    if going_on:
        yield f"It goes on after {_listed(going_on)}."
    if policy.requires_bot:
        yield "A session in which no bot takes part is kept but not counted."
    yield f"Each started block of {_minutes(policy.billing_block_minutes)} with user activity is one billing session."


def _silence(policy: Policy) -> str:
    clock, minutes = _CLOCKS[policy.inactivity_clock], _minutes(policy.inactivity_minutes)
    if policy.method != "inactivity":
        return "Silence does not close it."
    if policy.closing == "proactive":
        return f"After {minutes} of silence it closes by itself; {clock}."
    if policy.closing == "on_new_intent":
        return f"After {minutes} of silence, a new intent or an invalid one of the user starts another session; {clock}."
    return f"After {minutes} of silence, the user's next entry starts another session; {clock}."


def _spoken(policy: Policy) -> Iterator[str]:
    if policy.reminder is not None:
        where = _channels(policy.reminder.channels)
        yield f"The user is reminded {_minutes(policy.reminder.minutes)} before that, {where}, unless an entry comes."
    if policy.closure_message is not None:
        yield f"The user is told when silence closes it, {_channels(policy.closure_message.channels)}."
    else:
        yield "The user is not told."


def _signals(policy: Policy) -> Iterator[tuple[str, bool]]:
    yield "`escalated`", policy.on_escalated == "end"
    yield "`resolved`", policy.on_resolved == "end"
    yield "`survey.answered` within 24 hours of `survey.sent`", policy.on_survey_answered == "end"
    yield "`discard`", policy.discard_closes


def _timeline(policy: Policy) -> Iterator[dict[str, Any]]:
    """What happens if the user says one thing and nothing more comes, in order."""
    closes, reason = _close(policy)
    yield _step(0, "session.opened", "the user's first entry")
    if policy.method == "inactivity" and policy.closing != "proactive":
        yield _step(policy.inactivity_minutes, "silence", "from here on the user's return may start another session")
    if reason == "inactivity":
        if policy.reminder is not None:
            yield _step(closes - policy.reminder.minutes, "session.reminder", "the reminder")
        if policy.closure_message is not None:
            yield _step(closes, "session.closure_message", "the closure message")
    yield _step(closes, "session.closed", f"closes as `{reason}`")


def _close(policy: Policy) -> tuple[int, str]:
    """After how many minutes a session closes to which nothing more comes, and why."""
    by_silence = policy.method == "inactivity" and policy.closing == "proactive"
    closes = policy.inactivity_minutes if by_silence else policy.abandon_after_hours * 60
    longest = policy.max_duration_hours * 60
    return (longest, "max_duration") if longest < closes else (closes, "inactivity" if by_silence else "abandoned")


def _step(after_minutes: int, event: str, what: str) -> dict[str, Any]:
    return {"after_minutes": after_minutes, "event": event, "what": what}


def _minutes(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    if rest or not hours:
        return f"{minutes} minute{'s' if minutes != 1 else ''}"
    return f"{hours} hour{'s' if hours != 1 else ''}"


def _channels(channels: tuple[str, ...] | None) -> str:
    return "on every channel" if channels is None else f"on {_listed(list(channels)) or 'no channel'}"


def _listed(names: list[str]) -> str:
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last
