"""A worker on real servers, with jobs that tests run one by one."""

from collections.abc import AsyncIterator

import pytest

from app.resources import Resources, open_resources
from app.settings import Settings
from app.worker import Worker


@pytest.fixture
async def resources(redis_url: str, database_url: str) -> AsyncIterator[Resources]:
    settings = Settings(redis_url=redis_url, database_url=database_url, shards=4, archive_claim_idle_ms=100)
    async with open_resources(settings) as opened:
        yield opened


@pytest.fixture
async def worker(resources: Resources) -> AsyncIterator[Worker]:
    made = Worker(resources)
    yield made
    await made.stop()
