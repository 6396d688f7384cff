"""A deleted sandbox bot's clock runs out: nobody moves it any more, and its open sessions must not stay open for ever."""

from collections.abc import Iterable

from app.archive.session_reads import LONGEST_SESSION_MS
from app.closing.sweep import Sweep
from app.config.follower import BotConfig
from app.live.sandbox import SandboxClocks
from app.live.view import View


async def run_out(bot: str, *, clocks: SandboxClocks, sweep: Sweep) -> None:
    """Move the clock to where the last of the bot's open sessions is over, and close them all, each at its own deadline."""
    stands_ms = await clocks.stands_ms(bot)
    if stands_ms is not None:
        await sweep.run_bot(bot, await clocks.forward(bot, to_ms=stands_ms + LONGEST_SESSION_MS))


async def run_out_deleted(bots: Iterable[BotConfig], *, live: View, clocks: SandboxClocks, sweep: Sweep) -> None:
    """The same for each deleted one that still has a session open.

    A process that had not heard of the deletion may have opened it, or Redis was away just then.
    """
    for bot in bots:
        if bot.deleted and bot.sandbox and await live.count(bot.id):
            await run_out(bot.id, clocks=clocks, sweep=sweep)
