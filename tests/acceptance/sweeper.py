"""A process that sweeps one sandbox bot without pause until its standard input ends: `python -m tests.acceptance.sweeper BOT`.

It is a worker's sweep with nothing between two rounds and no archivist behind it, so that all events stay in the streams.
"""

import asyncio
import os
import sys
import threading

from app.log import configure_logging
from app.resources import open_resources
from app.settings import Settings


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


async def sweep(bot: str) -> None:
    settings = Settings()
    configure_logging(settings)
    async with open_resources(settings) as resources:
        sys.stdout.write("sweeping\n")
        sys.stdout.flush()
        while True:
            now_ms = await resources.sandboxes.stored_ms(bot)
            if now_ms is not None:
                await resources.sweep.run_bot(bot, now_ms)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    asyncio.run(sweep(sys.argv[1]))
