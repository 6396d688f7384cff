"""A real Redis and a real Postgres as child processes, used when no URL is set. Needs the extra `adjourn[embedded]`.

Owns everything under `var/`: `redis/` and `postgres/` (data), `log/`, `run/` (sockets), `lock` (held while in use).
Promises that data outlives every restart, crash and upgrade, and that other users of the machine reach none of it.
Refuses a TCP port, a second user of the same folder, data of a server that it cannot read, and any server but those of the extra.

    with embedded_servers(Path("var"), redis=True, postgres=True) as servers:
        servers.redis_url, servers.database_url
        servers.redis.kill(); servers.redis.start()      # for tests of faults
"""

from app.embedded.postgres_server import PostgresServer
from app.embedded.redis_server import RedisServer
from app.embedded.servers import Servers, embedded_servers, urls_of

__all__ = ["PostgresServer", "RedisServer", "Servers", "embedded_servers", "urls_of"]
