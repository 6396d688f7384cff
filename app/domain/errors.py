"""What the domain refuses. A refusal changes nothing; `app.api.errors` turns each into problem details.

DomainError
├── InvalidEntry      an entry lacks what the bot's method asks for, or holds what cannot be kept
├── InvalidVariable   a variable's name or value is out of its bounds
├── InvalidPolicy     a policy says something impossible: all its problems at once
└── StateTooLarge     a conversation's live state would pass its limit
"""

from typing import ClassVar


class DomainError(Exception):
    """The root: `code` for programs, `message` and `hint` for people."""

    code: ClassVar[str] = "invalid"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class _AtField(DomainError):
    """A refusal with one field at fault."""

    def __init__(self, field: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.field = field


class InvalidEntry(_AtField):
    code = "invalid_entry"


class InvalidVariable(_AtField):
    code = "invalid_variable"


class InvalidPolicy(DomainError):
    """`problems` are pairs of path (`channels.sms.inactivity_minutes`) and message, in the order of the policy.

    A message says what is wrong and, after its last semicolon, how to mend it.
    """

    code = "invalid_policy"

    def __init__(self, problems: tuple[tuple[str, str], ...]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))
        self.problems = problems


class StateTooLarge(DomainError):
    """`size` and `limit` in bytes, as encoded."""

    code = "state_too_large"

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(
            f"the conversation's live state would take {size} bytes; at most {limit} are allowed",
            hint="shorten the context, the tags or the variables, or delete variables that are no longer needed",
        )
        self.size = size
        self.limit = limit
