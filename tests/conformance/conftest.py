"""One running Adjourn for all conformance tests, with its own servers and its own worker; each test has a bot of its own."""

from collections.abc import Callable, Iterator
from itertools import count

import httpx
import pytest

from tests.acceptance.serving import folder, serving
from tests.conformance.bot import Bot
from tests.receiver import Receiver

BotMaker = Callable[..., Bot]


@pytest.fixture(scope="session")
def product() -> Iterator[httpx.Client]:
    with folder() as var_dir, serving(var_dir) as running, running.client() as client:
        yield client


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return count(1)


@pytest.fixture
def bot(product: httpx.Client, receiver: Receiver, numbers: Iterator[int]) -> BotMaker:
    """Make a sandbox bot with a policy: a preset's name, fields, or both."""

    def make(preset: str | None = None, **policy: object) -> Bot:
        name = f"bot-{next(numbers)}"
        given = policy if preset is None else {"preset": preset, **policy}
        made = Bot(product, receiver, name)
        made.ask("POST", "/v1/bots", {"id": name, "sandbox": True, "policy": given})
        return made

    return make
