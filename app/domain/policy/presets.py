"""The eight presets: the session rules of each of the four systems as values of a policy (`docs/rules.md`, "Presets")."""

from typing import Any

_MESSAGING = ("facebook", "whatsapp", "instagram", "telegram", "twitter", "sms")
_LONG = {"inactivity_minutes": 1440, "on_handoff": "end", "on_survey_answered": "end"}
_SHORT = {"inactivity_minutes": 5}
_HELP = {**_SHORT, "starts_with": ["article.opened"]}
_DISCARD = {"discard_utterances": ["discard"], "discard_all_utterances": ["discard all"]}

PRESETS: dict[str, dict[str, Any]] = {
    "kore": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "kore-7.2": {"closing": "on_new_intent", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "kore-legacy": {"closing": "on_return", "inactivity_minutes": 15, "inactivity_clock": "user", **_DISCARD},
    "botanalytics": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "any", "on_handoff": "split"},
    "botanalytics-platform": {"method": "platform", "abandon_after_hours": 24, "bot_starts": False},
    "botanalytics-client": {"method": "client", "abandon_after_hours": 24},
    "reamaze": {
        "closing": "proactive",
        "inactivity_minutes": 15,
        "inactivity_clock": "any",
        "on_escalated": "end",
        "on_resolved": "end",
        "requires_bot": True,
        "agent_message_joins": False,
    },
    "aivo": {
        "closing": "proactive",
        "inactivity_minutes": 5,
        "inactivity_clock": "user",
        "channels": {**dict.fromkeys(_MESSAGING, _LONG), "web": _SHORT, "api": _SHORT, "help": _HELP},
    },
}
