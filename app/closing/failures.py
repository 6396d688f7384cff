"""Failures in a job over many conversations: each stops no other, and the first is raised when all are done."""

from collections.abc import Sequence

from app.domain.errors import DomainError
from app.live.fold import StuckConversation


def concerns_one(error: BaseException) -> bool:
    """Whether it says something of one conversation alone, which the ledger has logged; else it is about Redis, or about us."""
    return isinstance(error, StuckConversation | DomainError)


def raise_first(failures: Sequence[BaseException]) -> None:
    """Raise what failed first, if anything did."""
    if failures:
        raise failures[0]
