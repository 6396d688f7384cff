"""A real Redis and a real Postgres as child processes, used when no URL is set.

Owns the folder `var/`: `redis/` and `postgres/` (data), `log/`, `run/` (sockets), `lock` (held while in use). Promises that
the servers end with the process that started them, and keep their data and URLs over restarts. Refuses a TCP port, a second
process on the same folder, and any imitation of a server.

    with embedded_servers(Path("var"), redis=True, postgres=True) as servers:
        servers.redis_url, servers.database_url
        servers.redis.kill(); servers.redis.start()      # for tests of faults
"""

from app.embedded.postgres_server import PostgresServer
from app.embedded.redis_server import RedisServer
from app.embedded.servers import Servers, embedded_servers, urls_of

__all__ = ["PostgresServer", "RedisServer", "Servers", "embedded_servers", "urls_of"]
