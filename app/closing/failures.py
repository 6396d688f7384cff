"""Failures in jobs over many conversations or bots: one stops no other, and the first is raised when all are done."""

from collections.abc import Awaitable, Callable, Iterable, Sequence

from app.domain.errors import DomainError
from app.live.fold import StuckConversation
from app.live.pipe import RedisUnreachable

Job = Callable[[], Awaitable[object]]


def concerns_one(error: BaseException) -> bool:
    """Whether it concerns one conversation alone, which the ledger has logged; else it is about Redis, or a bug."""
    return isinstance(error, StuckConversation | DomainError)


def raise_first(failures: Sequence[BaseException]) -> None:
    """Raise the first failure, if there is one."""
    if failures:
        raise failures[0]


async def run_each(jobs: Iterable[Job]) -> None:
    """Run all jobs, one after the other, then raise the first failure; at once if Redis is unreachable."""
    failures: list[Exception] = []
    for job in jobs:
        try:
            await job()
        except RedisUnreachable:
            raise
        except Exception as error:  # noqa: BLE001 - raised when the others are done
            failures.append(error)
    raise_first(failures)
