"""The eight presets: what each of the four systems means by a session, as values of a policy. `docs/rules.md`, "Presets"."""

from typing import Any

_MESSAGING = ("facebook", "whatsapp", "instagram", "telegram", "twitter", "sms")
_LONG = {"inactivity_minutes": 1440, "on_handoff": "end", "on_survey_answered": "end"}
_SHORT = {"inactivity_minutes": 5}

PRESETS: dict[str, dict[str, Any]] = {
    "kore": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "user"},
    "kore-7.2": {"closing": "on_new_intent", "inactivity_minutes": 15, "inactivity_clock": "user"},
    "kore-legacy": {"closing": "on_return", "inactivity_minutes": 15, "inactivity_clock": "user"},
    "botanalytics": {"closing": "proactive", "inactivity_minutes": 15, "inactivity_clock": "any", "on_handoff": "split"},
    "botanalytics-platform": {"method": "platform", "abandon_after_hours": 24},
    "botanalytics-client": {"method": "client", "abandon_after_hours": 24},
    "reamaze": {
        "closing": "proactive",
        "inactivity_minutes": 15,
        "inactivity_clock": "any",
        "on_escalated": "end",
        "on_resolved": "end",
        "requires_bot": True,
    },
    "aivo": {
        "closing": "proactive",
        "inactivity_minutes": 5,
        "inactivity_clock": "user",
        "channels": {**{name: dict(_LONG) for name in _MESSAGING}, **{name: dict(_SHORT) for name in ("web", "api", "help")}},
    },
}
