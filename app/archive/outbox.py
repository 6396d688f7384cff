"""The outbox: claim and settle, as the dispatcher does, and its maintenance.

A claim leases a delivery: it counts an attempt and is not due again before the lease ends, so a worker that dies in between
delays it by one lease and no more. A result is recorded for its own attempt alone: one that comes too late changes nothing.

Claiming locks the endpoint, not only its deliveries. So the number under way and the breaker hold over all workers, while
deliveries may be added all the time (the lock is one that a foreign key does not wait for).

Maintenance ends deliveries that will never be sent, deletes old ones and counts pending ones. Each call does a portion within
its caller's transaction, and leaves alone what a worker has leased.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Row, TextClause, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.archive import audit
from app.archive.audit import Actor
from app.archive.tables import instant, instant_or_none
from app.domain.instants import ms_of

_READ_OF_ENDPOINT = 4

# The first row of each endpoint that has any pending is found by skipping through the index, so idle endpoints cost nothing
# and an endpoint with a million rows costs as much as one with a single row.
_LOCK_DUE = text("""
    WITH RECURSIVE waiting AS (
        (SELECT endpoint_id FROM deliveries WHERE status = 'pending' ORDER BY endpoint_id LIMIT 1)
        UNION ALL
        SELECT (SELECT d.endpoint_id FROM deliveries d
                WHERE d.status = 'pending' AND d.endpoint_id > w.endpoint_id ORDER BY d.endpoint_id LIMIT 1)
        FROM waiting w WHERE w.endpoint_id IS NOT NULL
    ), due AS (
        SELECT w.endpoint_id, (SELECT d.next_attempt_at FROM deliveries d
                               WHERE d.status = 'pending' AND d.endpoint_id = w.endpoint_id
                               ORDER BY d.next_attempt_at LIMIT 1) AS since,
               (SELECT count(*) FROM deliveries l WHERE l.endpoint_id = w.endpoint_id
                AND l.status = 'pending' AND l.leased_until > :now) AS under_way
        FROM waiting w WHERE w.endpoint_id IS NOT NULL
    ), ready AS (
        SELECT due.endpoint_id, due.since, due.under_way, e.bot_id, b.sandbox, coalesce(h.failures, 0) AS failures,
               p.id IS NOT NULL AS prompt
        FROM due
        JOIN endpoints e ON e.id = due.endpoint_id
        JOIN bots b ON b.id = e.bot_id
        LEFT JOIN endpoint_health h ON h.endpoint_id = e.id
        LEFT JOIN unnest(CAST(:prompt AS uuid[])) AS p(id) ON p.id = e.id
        WHERE due.since <= :now AND e.enabled AND e.deleted_at IS NULL AND (h.resume_at IS NULL OR h.resume_at <= :now)
    ), of_bot AS (
        SELECT *, row_number() OVER (PARTITION BY prompt, bot_id ORDER BY under_way, since) AS place
        FROM ready WHERE prompt OR bot_id <> ALL(CAST(:full_bots AS text[]))
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY prompt ORDER BY place, under_way, since) AS rank FROM of_bot
    )
    SELECT e.id, e.url, e.secret, e.previous_secret, e.previous_secret_expires_at, e.private_allowed, e.bot_id,
           ranked.sandbox, ranked.failures, ranked.prompt
    FROM ranked JOIN endpoints e ON e.id = ranked.endpoint_id
    WHERE ranked.rank <= CASE WHEN ranked.prompt THEN CAST(:prompt_room AS int) ELSE CAST(:room AS int) END
          AND e.enabled AND e.deleted_at IS NULL
    ORDER BY ranked.rank
    FOR NO KEY UPDATE OF e SKIP LOCKED
""")

# A statement of its own, since it must see the leases of the previous holder of the lock. Bots alternate, and of each bot its
# endpoints: the one that has least in flight is first.
_LEASE = text("""
    WITH open AS (
        SELECT o.endpoint_id, o.bot_id, o.bot_busy, l.under_way, o.max_in_flight - l.under_way AS room
        FROM unnest(CAST(:endpoints AS uuid[]), CAST(:limits AS int[]), CAST(:bots AS text[]), CAST(:busy AS int[]))
            AS o(endpoint_id, max_in_flight, bot_id, bot_busy)
        CROSS JOIN LATERAL (SELECT count(*) AS under_way FROM deliveries l WHERE l.endpoint_id = o.endpoint_id
                            AND l.status = 'pending' AND l.leased_until > :now) l
    ), candidates AS (
        SELECT c.id, c.place, c.next_attempt_at,
               open.bot_busy + row_number() OVER (PARTITION BY open.bot_id ORDER BY c.place, c.next_attempt_at) AS of_bot
        FROM open CROSS JOIN LATERAL (
            SELECT f.id, f.next_attempt_at, open.under_way + row_number() OVER (ORDER BY f.next_attempt_at, f.id) AS place FROM (
                SELECT d.id, d.next_attempt_at FROM deliveries d
                WHERE d.status = 'pending' AND d.endpoint_id = open.endpoint_id AND d.next_attempt_at <= :now
                  AND NOT EXISTS (SELECT FROM deliveries p WHERE p.id = d.after_id AND p.status = 'pending')
                ORDER BY d.next_attempt_at
                LIMIT least(greatest(open.room, 0), CAST(:of_endpoint AS int))
            ) f
        ) c
    ), chosen AS (
        SELECT id FROM candidates WHERE of_bot <= :of_bot ORDER BY of_bot, place, next_attempt_at LIMIT :room
    ), locked AS (
        SELECT d.id FROM deliveries d JOIN chosen ON chosen.id = d.id
        WHERE d.status = 'pending' AND d.next_attempt_at <= :now
        FOR UPDATE OF d SKIP LOCKED
    )
    UPDATE deliveries d SET attempt = d.attempt + 1, leased_until = :lease, next_attempt_at = :lease
    FROM locked WHERE d.id = locked.id
    RETURNING d.id, d.endpoint_id, d.bot_id, d.event, d.event_at, d.body, d.attempt, d.uncounted, d.next_attempt_at
""")

_SETTLE = text("""
    UPDATE deliveries d SET
        status = s.status,
        leased_until = NULL,
        next_attempt_at = coalesce(s.next_attempt_at, d.next_attempt_at),
        uncounted = d.uncounted + s.uncounted,
        delivered_at = CASE WHEN s.status = 'delivered' THEN s.ended_at END,
        failed_at = CASE WHEN s.status = 'failed' THEN s.ended_at END,
        last_status = s.replied,
        last_error = s.error
    FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:statuses AS text[]), CAST(:nexts AS timestamptz[]),
                CAST(:ends AS timestamptz[]), CAST(:replied AS int[]), CAST(:errors AS text[]), CAST(:uncounted AS int[]))
        AS s(id, attempt, status, next_attempt_at, ended_at, replied, error, uncounted)
    WHERE d.id = s.id AND d.attempt = s.attempt AND d.status = 'pending'
    RETURNING d.id
""")

# Else each claim would read a delivery that waits for another, in vain, until that one is tried again.
_DELAY_FOLLOWERS = text("""
    UPDATE deliveries d SET next_attempt_at = p.next_attempt_at
    FROM unnest(CAST(:ids AS uuid[])) AS s(id)
    JOIN deliveries p ON p.id = s.id AND p.status = 'pending' AND p.leased_until IS NULL
    WHERE d.after_id = p.id AND d.status = 'pending' AND d.leased_until IS NULL AND d.next_attempt_at < p.next_attempt_at
""")

# Recorded even if it came too late to settle anything. The join leaves out deliveries that were deleted meanwhile.
_KEEP_ATTEMPTS = text("""
    INSERT INTO attempts (delivery_id, attempt, started_at, duration_ms, status, error, reply)
    SELECT d.id, a.attempt, a.started_at, a.duration_ms, a.replied, a.error, a.reply
    FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS int[]), CAST(:starts AS timestamptz[]), CAST(:durations AS int[]),
                CAST(:replied AS int[]), CAST(:errors AS text[]), CAST(:replies AS text[]))
        AS a(id, attempt, started_at, duration_ms, replied, error, reply)
    JOIN deliveries d ON d.id = a.id
    ON CONFLICT DO NOTHING
""")

_DISABLE = text("""
    UPDATE endpoints SET enabled = false, disabled_reason = :reason, updated_at = :now
    WHERE id = CAST(:endpoint AS uuid) AND enabled RETURNING bot_id
""")


class DueEndpoint(Struct, frozen=True):
    """An endpoint with due deliveries, locked for this transaction. `failures`: failed attempts in a row.

    `prompt`: it answers promptly, and has the senders that are lent to such endpoints.
    """

    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    sandbox: bool
    failures: int
    private_allowed: bool = False
    bot: str = ""
    prompt: bool = False


class Room(Struct, frozen=True):
    """How many deliveries may be claimed: of endpoints that are `prompt`, and of `others`; of these none for the `full_bots`."""

    prompt: int
    others: int
    prompt_endpoints: Sequence[str] = ()
    full_bots: Sequence[str] = ()


class Claim(Struct, frozen=True):
    """A delivery leased to this worker.

    `attempt` is the number of the one to come; `tries` is the same without those that the retry schedule does not count.
    """

    id: str
    endpoint: DueEndpoint
    bot: str
    event: str
    event_at_ms: int
    body: str
    attempt: int
    tries: int
    claimed_at_ms: int
    leased_until_ms: int


class Settled(Struct, frozen=True):
    """How an attempt ended, and the next status of its delivery.

    `next_attempt_at_ms` is set if `status` is `pending`. `replied` is the HTTP status that came back.
    """

    id: str
    attempt: int
    status: str
    started_at_ms: int
    duration_ms: int
    next_attempt_at_ms: int | None = None
    replied: int | None = None
    error: str | None = None
    reply: str | None = None
    uncounted: int = 0


def valid_secrets(endpoint: Row[Any], *, now_ms: int) -> tuple[str, ...]:
    """The secrets to sign with: the present one and, until it expires, the one before it."""
    expires_at = endpoint.previous_secret_expires_at
    if endpoint.previous_secret is None or expires_at is None or ms_of(expires_at) <= now_ms:
        return (endpoint.secret,)
    return (endpoint.secret, endpoint.previous_secret)


async def lock_due(conn: AsyncConnection, *, room: Room, now_ms: int) -> list[DueEndpoint]:
    """Endpoints with due deliveries that may be sent to: bots alternate, the least busy is first, then the longest waiting."""
    parameters = {
        "now": instant(now_ms),
        "room": room.others,
        "prompt_room": room.prompt,
        "prompt": list(room.prompt_endpoints),
        "full_bots": list(room.full_bots),
    }
    rows = await conn.execute(_LOCK_DUE, parameters)
    return [
        DueEndpoint(
            endpoint_id=str(row.id),
            url=row.url,
            secrets=valid_secrets(row, now_ms=now_ms),
            sandbox=row.sandbox,
            failures=row.failures,
            private_allowed=row.private_allowed,
            bot=row.bot_id,
            prompt=row.prompt,
        )
        for row in rows
    ]


async def lease(
    conn: AsyncConnection,
    endpoints: Sequence[tuple[DueEndpoint, int]],
    *,
    room: int,
    now_ms: int,
    lease_ms: int,
    busy: Mapping[str, int],
    of_bot: int,
) -> list[Claim]:
    """Claim up to `room` deliveries of these locked endpoints; the number beside each is how many it may have in flight.

    `busy` is how many each bot has in flight already, and `of_bot` how many it may have.
    """
    if not endpoints:
        return []
    known = {endpoint.endpoint_id: endpoint for endpoint, _ in endpoints}
    parameters = {
        "endpoints": list(known),
        "limits": [limit for _, limit in endpoints],
        "bots": [endpoint.bot for endpoint, _ in endpoints],
        "busy": [busy.get(endpoint.bot, 0) for endpoint, _ in endpoints],
        "of_bot": of_bot,
        # Reading all that each may have would read many times what there is room for.
        "of_endpoint": max(_READ_OF_ENDPOINT, 2 * room // len(endpoints)),
        "room": room,
        "now": instant(now_ms),
        "lease": instant(now_ms + lease_ms),
    }
    rows = await conn.execute(_LEASE, parameters)
    return [_claim(row, known[str(row.endpoint_id)], claimed_at_ms=now_ms) for row in rows]


async def settle(conn: AsyncConnection, settled: Sequence[Settled]) -> set[str]:
    """Record how attempts ended; returns the deliveries whose status changed by it."""
    parameters = _columns(settled)
    rows = await conn.execute(_SETTLE, parameters)
    effective = {str(row.id) for row in rows}
    waiting = [item.id for item in settled if item.status == "pending"]
    if waiting:
        await conn.execute(_DELAY_FOLLOWERS, {"ids": waiting})
    await conn.execute(_KEEP_ATTEMPTS, parameters | _details(settled))
    return effective


async def disable_endpoint(conn: AsyncConnection, endpoint_id: str, *, reason: str, now_ms: int) -> None:
    """Disable an endpoint, with the reason; nothing happens if it is disabled already."""
    disabled = await conn.execute(_DISABLE, {"endpoint": endpoint_id, "reason": reason, "now": instant(now_ms)})
    for row in disabled:
        await audit.record(conn, Actor("adjourn"), "endpoint.disabled", endpoint_id, bot=row.bot_id, reason=reason)


def _claim(row: Row[Any], endpoint: DueEndpoint, *, claimed_at_ms: int) -> Claim:
    return Claim(
        id=str(row.id),
        endpoint=endpoint,
        bot=row.bot_id,
        event=row.event,
        event_at_ms=ms_of(row.event_at),
        body=row.body,
        attempt=row.attempt,
        tries=row.attempt - row.uncounted,
        claimed_at_ms=claimed_at_ms,
        leased_until_ms=ms_of(row.next_attempt_at),
    )


def _columns(settled: Sequence[Settled]) -> dict[str, Any]:
    return {
        "ids": [item.id for item in settled],
        "attempts": [item.attempt for item in settled],
        "statuses": [item.status for item in settled],
        "nexts": [instant_or_none(item.next_attempt_at_ms) for item in settled],
        "ends": [instant(item.started_at_ms + item.duration_ms) for item in settled],
        "replied": [item.replied for item in settled],
        "errors": [item.error for item in settled],
        "uncounted": [item.uncounted for item in settled],
    }


def _details(settled: Sequence[Settled]) -> dict[str, Any]:
    return {
        "starts": [instant(item.started_at_ms) for item in settled],
        "durations": [item.duration_ms for item in settled],
        "replies": [item.reply for item in settled],
    }


_CANCEL = text("""
    UPDATE deliveries SET status = 'cancelled', leased_until = NULL, failed_at = :now,
        last_error = coalesce(last_error, 'the endpoint is disabled or deleted')
    WHERE id IN (
        SELECT d.id FROM endpoints e JOIN deliveries d ON d.endpoint_id = e.id AND d.status = 'pending'
        WHERE (NOT e.enabled OR e.deleted_at IS NOT NULL) AND (d.leased_until IS NULL OR d.leased_until <= :now)
        LIMIT :room
        FOR UPDATE OF d SKIP LOCKED
    )
    RETURNING id
""")

_EXPIRE = text("""
    UPDATE deliveries SET status = 'failed', leased_until = NULL, failed_at = :now,
        last_error = coalesce(last_error, 'the endpoint did not answer for as long as deliveries are tried')
    WHERE id IN (
        SELECT d.id FROM endpoint_health h JOIN deliveries d ON d.endpoint_id = h.endpoint_id AND d.status = 'pending'
        WHERE h.opened_at IS NOT NULL AND d.queued_at < :since AND (d.leased_until IS NULL OR d.leased_until <= :now)
        LIMIT :room
        FOR UPDATE OF d SKIP LOCKED
    )
    RETURNING id
""")

_PRUNE = text("""
    DELETE FROM deliveries WHERE id IN (
        SELECT id FROM deliveries WHERE created_at < :since AND status = ANY(CAST(:statuses AS text[]))
        ORDER BY created_at LIMIT :room FOR UPDATE SKIP LOCKED
    )
    RETURNING id
""")

_DEPTH = text("SELECT count(*) FROM deliveries WHERE status = 'pending'")


async def cancel_unwanted(conn: AsyncConnection, *, room: int, now_ms: int) -> int:
    """Cancel pending deliveries of endpoints that were disabled or deleted; returns how many."""
    return await _count(conn, _CANCEL, {"room": room, "now": instant(now_ms)})


async def expire(conn: AsyncConnection, *, queued_before_ms: int, room: int, now_ms: int) -> int:
    """Give up deliveries that have waited that long behind an open breaker, where most never get all their attempts."""
    return await _count(conn, _EXPIRE, {"since": instant(queued_before_ms), "room": room, "now": instant(now_ms)})


async def prune(conn: AsyncConnection, statuses: Sequence[str], *, created_before_ms: int, room: int) -> int:
    """Delete deliveries of these statuses that are that old; returns how many."""
    return await _count(conn, _PRUNE, {"statuses": list(statuses), "since": instant(created_before_ms), "room": room})


async def depth(conn: AsyncConnection) -> int:
    """How many deliveries are pending."""
    return int(await conn.scalar(_DEPTH) or 0)


async def _count(conn: AsyncConnection, statement: TextClause, parameters: dict[str, Any]) -> int:
    return len((await conn.execute(statement, parameters)).all())
