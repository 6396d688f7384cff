"""The effects of a policy, in words and as a timeline, and notices of settings that have no effect or are deprecated."""

from collections.abc import Iterator
from typing import Any

from msgspec import json

from app.domain.policy.model import STARTERS, Policy, Spoken

_LAZY = (
    "Closing `{closing}` is deprecated: a session stays open until its user comes back. "
    "Choose `proactive`, which closes it when the silence is over."
)
_STARTS = {
    "inactivity": "A session starts with the first entry of a conversation in which none is open.",
    "platform": "A session goes from `session.start`, or else from the first entry, to `session.end`, whatever the silence.",
    "client": "The entries with one `client_session_id` make up a session; several of one user may be open side by side.",
}
_CLOCKS = {
    "any": "any entry restarts the clock",
    "user": "only the user's entries restart the clock, once the user has taken part",
}
_HANDOFFS = {
    "continue": "A hand-off to a human does not end the session.",
    "end": "A hand-off to a human closes it as `handoff`.",
    "split": "A hand-off to a human closes it as `handoff`; the next session is of trade `agent`, until the human leaves.",
    "pause": "After a hand-off to a human there is no silence until `agent.left`.",
}

_TRANSCRIPTS = {
    "full": (),
    "redacted": ("E-mail addresses, phone and card numbers, IBANs and IP addresses are redacted before a text is stored.",),
    "none": ("Texts, metadata and context of messages are not stored in transcripts.",),
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
    """Deprecated settings (K25), and settings that never take effect, each once; those of one channel name it."""
    general = list(_notices(policy))
    special = {
        notice: f"On channel `{channel}`: {notice}"
        for channel in reversed(policy.channels)
        for notice in _notices(policy.on(channel))
        if notice not in general
    }
    return general + [special[notice] for notice in reversed(special)]


def _notices(policy: Policy) -> Iterator[str]:
    if policy.method == "inactivity" and policy.closing != "proactive":
        yield _LAZY.format(closing=policy.closing)
    for name, why in _without_effect(policy):
        yield f"`{name}` has no effect: {why}."


def _without_effect(policy: Policy) -> Iterator[tuple[str, str]]:
    """Fields that are set and never decide anything, and why."""
    if policy.method != "inactivity" and policy.closing != "proactive":
        yield "closing", f"under method `{policy.method}` silence does not close a session"
    for name in ("closure_message", "reminder"):
        spoken: Spoken | None = getattr(policy, name)
        why = None if spoken is None else _never_said(policy, spoken)
        if why is not None:
            yield name, why
    yield from _never_abandoned(policy)
    if policy.epilogue_intents and not policy.epilogue_seconds:
        yield "epilogue_intents", "`epilogue_seconds` is 0"
    if policy.epilogue_seconds and policy.method == "client":
        yield "epilogue_seconds", "under method `client` every entry after the end is late"
    if policy.redact_masks and policy.transcript != "redacted":
        yield "redact_masks", f"`transcript` is `{policy.transcript}`"
    if not policy.bot_starts and not {"message", "connect"} & {*policy.starts_with}:
        yield "bot_starts", "`starts_with` holds neither `message` nor `connect`"


def _never_said(policy: Policy, spoken: Spoken) -> str | None:
    if not _closes_by_silence(policy):
        return "silence alone does not close a session under this policy"
    closes, reason = _close(policy)
    if reason != "inactivity":
        return f"a session closes after {_minutes(closes)} as `{reason}`, before the silence is over"
    return "its list of channels is empty" if spoken.channels == () else None


def _never_abandoned(policy: Policy) -> Iterator[tuple[str, str]]:
    if _closes_by_silence(policy):
        if policy.abandon_after_hours != Policy().abandon_after_hours:
            yield "abandon_after_hours", "silence closes a session before"
    elif policy.abandon_after_hours > policy.max_duration_hours:
        yield "abandon_after_hours", "it is longer than `max_duration_hours`"


def _closes_by_silence(policy: Policy) -> bool:
    return policy.method == "inactivity" and policy.closing == "proactive"


def _words(policy: Policy) -> Iterator[str]:
    yield _STARTS[policy.method]
    if policy.starts_with != STARTERS:
        yield f"Only these entries start a session: {_listed([f'`{kind}`' for kind in policy.starts_with])}."
    if not policy.bot_starts:
        yield "A message or `connect` of the bot alone starts none."
    yield _silence(policy)
    if _closes_by_silence(policy):
        yield from _spoken(policy)
    if policy.epilogue_seconds:
        yield from _epilogue(policy)
    yield _HANDOFFS[policy.on_handoff]
    if not policy.agent_message_joins:
        yield "A message by an agent who has not joined is no hand-off."
    ending = [name for name, does in _signals(policy) if does]
    going_on = [name for name, does in _signals(policy) if not does]
    yield f"It is closed by {_listed(['`chat.closed`', '`session.end`', '`interrupted`', *ending])}."
    if going_on:
        yield f"It goes on after {_listed(going_on)}."
    for name, utterances in (("discard", policy.discard_utterances), ("discard.all", policy.discard_all_utterances)):
        if utterances:
            yield f"A user who says only {_listed([json.encode(text).decode() for text in utterances])} does what `{name}` does."
    if policy.requires_bot:
        yield "A session in which no bot takes part is kept but not counted."
    yield from _TRANSCRIPTS[policy.transcript]
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
        whom = "A user who took part" if policy.closure_message.to == "interactive" else "The user"
        yield f"{whom} gets a message when silence closes it, {_channels(policy.closure_message.channels)}."
    else:
        yield "The user gets no message."


def _epilogue(policy: Policy) -> Iterator[str]:
    intents = _listed([f"`{intent}`" for intent in policy.epilogue_intents])
    which = f"without an intent or with {intents}" if intents else "without an intent"
    yield f"A user's message {which} within {policy.epilogue_seconds} seconds of the close is late and opens nothing."


def _signals(policy: Policy) -> Iterator[tuple[str, bool]]:
    yield "`escalated`", policy.on_escalated == "end"
    yield "`resolved`", policy.on_resolved == "end"
    yield "`survey.answered` within 24 hours of `survey.sent`", policy.on_survey_answered == "end"
    yield "`discard`", policy.discard_closes


def _timeline(policy: Policy) -> Iterator[dict[str, Any]]:
    """The events if the user sends one message and nothing more comes, in order."""
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
    """After how many minutes a session closes if nothing more comes, and why."""
    by_silence = _closes_by_silence(policy)
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
