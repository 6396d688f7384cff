"""What is wrong with an entry that cannot be read: the decoder's words as a field, what is wrong with it, and how to mend it."""

import re
from typing import get_args

from app.domain.entry import Entry, EntryType, Role
from app.domain.errors import Fault
from app.errors import Invalid

LONGEST = 200
"""Characters told of what was sent: names of fields and values may be as long as a body."""

_SAID = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<where>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (?P<which>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)

_ID = "1 to 256 characters, no control characters"
_HINTS = {
    "role": f"one of {', '.join(get_args(Role))}",
    "type": f"one of {', '.join(get_args(EntryType))}",
    "channel": "1 to 64 of a-z, 0-9, `_`, `.` and `-`, the first of them a letter or digit",
    "language": "a language tag such as `pt` or `pt-BR`",
    "sent_at": "RFC 3339 with an offset, such as 2026-11-21T10:00:00Z",
    "tags": "up to 64 texts of 1 to 128 characters",
    "sentiment": 'an object of tones and their levels, such as {"angry": 0.7}',
    **dict.fromkeys(("user_id", "message_id", "conversation_id", "client_session_id", "window_id", "in_reply_to"), _ID),
}
_HINT = "see the field's type and limits in the API guide"
_FIELDS = f"the fields are {', '.join(Entry.__struct_fields__)}; what is yours alone goes into `metadata`"


def unreadable(error: Exception) -> Invalid:
    """The refusal of an entry, or of a whole batch, for what the decoder said."""
    said = _SAID.fullmatch(str(error))
    what, where = (said["what"], said["where"] or "") if said else (str(error), "")
    return Invalid("the entry cannot be read", faults=(_fault(what, where.lstrip(".")),))


def _fault(what: str, where: str) -> Fault:
    field = _FIELD.fullmatch(what)
    if field is None:
        return Fault(where[:LONGEST] or "body", what[:LONGEST], _HINTS.get(re.split(r"[.\[]", where)[0], _HINT))
    name = field["name"][:LONGEST]
    if field["which"] == "missing required":
        return Fault(name, "it is required", _HINTS.get(name, _HINT))
    return Fault(name, "there is no such field", _FIELDS)
