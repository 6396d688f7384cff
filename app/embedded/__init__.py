"""A real Redis and a real Postgres as child processes, for when no URL is set.

Owns what lies under `var/`: `redis/` and `postgres/` (data), `log/`, `run/` (sockets), `lock` (held while in use).
Refuses a TCP port, a second user of the same folder, and any stand-in: these are the servers of a deployment.

    with embedded_servers(Path("var"), redis=True, postgres=True) as servers:
        servers.redis_url, servers.database_url
        servers.redis.kill(); servers.redis.start()      # for tests of faults
"""

from app.embedded.postgres_server import PostgresServer
from app.embedded.redis_server import RedisServer
from app.embedded.servers import Servers, embedded_servers, urls_of

__all__ = ["PostgresServer", "RedisServer", "Servers", "embedded_servers", "urls_of"]
