"""Every route but the two of ingest, one module a resource."""

from fastapi import APIRouter

from app.api.routes import (
    audit,
    bots,
    conversations,
    deliveries,
    endpoints,
    keys,
    live,
    operations,
    policies,
    rejects,
    sandbox,
    sessions,
    summary,
    variables,
)

ROUTERS: tuple[APIRouter, ...] = (
    bots.router,
    policies.router,
    endpoints.router,
    keys.router,
    audit.router,
    rejects.router,
    sessions.router,
    conversations.router,
    live.router,
    summary.router,
    variables.router,
    sandbox.router,
    deliveries.router,
    operations.router,
)
