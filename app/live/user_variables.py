"""Variables of a user, which every conversation of that user shares, in any channel.

They live in one hash a user, beside no conversation's state: a user has many strands. Each has a TTL, of 366 days where none is
given. The module owns their room (as much as a conversation's whole state); names and values are checked by
`app.domain.rules.variables`.
"""

from collections.abc import Mapping

from msgspec import msgpack

from app.domain.errors import StateTooLarge
from app.domain.records import SetVariable, Variable
from app.domain.rules import variables
from app.domain.rules.retention import LARGEST_STATE
from app.live import keys
from app.live.lua import LuaScript, read_source
from app.live.pipe import Pipe

_encode = msgpack.Encoder().encode
_decode = msgpack.Decoder().decode


class UserVariables:
    """The variables of all users. `now_ms` is the instant in the bot's own time."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._set = LuaScript(read_source("app.live", "set_user_variable.lua"))

    async def read(self, bot: str, user: str, *, now_ms: int) -> Mapping[str, Variable]:
        """A user's variables that have not expired, by name."""
        reply = await self._pipe.call("HGETALL", keys.user_variables(bot, user))
        stored = {reply[i].decode(): _variable(reply[i + 1]) for i in range(0, len(reply), 2)}
        return dict(sorted(variables.unexpired(stored, now_ms).items()))

    async def put(self, bot: str, user: str, command: SetVariable, *, now_ms: int) -> Variable:
        """Set or replace one. Raises `InvalidVariable`, and `StateTooLarge` if all of the user's would take too much room."""
        variables.check(command)
        ttl_ms = variables.LONGEST_TTL_MS if command.ttl_ms is None else command.ttl_ms
        expires_at_ms = now_ms + ttl_ms
        stored = str(expires_at_ms).encode() + b":" + _encode(command.value)
        name = keys.user_variables(bot, user)
        size = await self._set.call(self._pipe, [name], command.name, stored, now_ms, LARGEST_STATE, variables.LONGEST_TTL_MS)
        if size < 0:
            raise StateTooLarge(-size, LARGEST_STATE)
        return Variable(command.value, expires_at_ms)

    async def delete(self, bot: str, user: str, name: str) -> None:
        """Delete one; nothing happens if there is none of this name."""
        await self._pipe.call("HDEL", keys.user_variables(bot, user), name)


def _variable(stored: bytes) -> Variable:
    expires_at, _, value = stored.partition(b":")
    return Variable(_decode(value), int(expires_at))
