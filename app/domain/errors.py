"""Refusals of the domain. A refusal changes nothing; `app.api.errors` turns each into problem details.

DomainError
├── InvalidEntry      an entry lacks what the bot's method asks for, or holds what cannot be stored
├── InvalidVariable   a variable's name or value is beyond its limits
├── InvalidPolicy     a policy holds values that are not allowed, or not together
└── StateTooLarge     a conversation's live state would pass its limit
"""

from collections.abc import Sequence
from typing import ClassVar

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One thing that is wrong: where it is, what is wrong with it, and how to correct it.

    `where` names a field or parameter by its path: `inactivity_minutes`, `[3].role`, `channels.sms.closing`.
    """

    where: str
    what: str
    hint: str = ""


class DomainError(Exception):
    """The root: `code` for programs, `message` and `hint` for people, and every fault, if there are several or it has a place."""

    code: ClassVar[str] = "invalid"

    def __init__(self, message: str, *, hint: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.faults = tuple(faults)


class _AtField(DomainError):
    """A refusal with one field at fault."""

    def __init__(self, field: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint, faults=[Fault(field, message, hint)])
        self.field = field


class InvalidEntry(_AtField):
    code = "invalid_entry"


class InvalidVariable(_AtField):
    code = "invalid_variable"


class InvalidPolicy(DomainError):
    """All faults of a policy, in its own order."""

    code = "invalid_policy"

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("the policy holds what is not allowed", faults=faults)


class StateTooLarge(DomainError):
    """`size` and `limit` in bytes, as encoded."""

    code = "state_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the live state of the conversation or user would take {size} bytes; at most {limit} are allowed",
            hint="shorten the context, the tags or the variables, or delete variables that are no longer needed",
        )
        self.size = size
        self.limit = limit
