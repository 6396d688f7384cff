"""A migrated database, a receiver, and dispatchers that are stopped at the end."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.archive.engine import make_engine
from app.delivery.dispatcher import Dispatcher
from app.settings import Settings
from tests.delivery.outbox_rows import Outbox
from tests.receiver import Receiver


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    made = make_engine(database_url)
    yield made
    await made.dispose()


@pytest.fixture
def outbox(engine: AsyncEngine) -> Outbox:
    return Outbox(engine)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


DispatcherMaker = Callable[..., Dispatcher]


@pytest.fixture
async def dispatchers(engine: AsyncEngine) -> AsyncIterator[DispatcherMaker]:
    """Make dispatchers without jitter; settings by name."""
    async with AsyncExitStack() as stack:

        def make(**chosen: object) -> Dispatcher:
            settings = Settings(webhook_allow_private=True, **chosen)  # type: ignore[arg-type]  # checked by pydantic
            dispatcher = Dispatcher(engine, settings, jitter=lambda: 0.0)
            dispatcher.start()
            stack.push_async_callback(dispatcher.stop, 0)
            return dispatcher

        yield make


@pytest.fixture
async def dispatcher(dispatchers: DispatcherMaker) -> Dispatcher:
    return dispatchers()
