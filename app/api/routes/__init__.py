"""Every route but the two of ingest: one module a resource, with its request and response models."""

from fastapi import APIRouter

from app.api.routes import (
    analytics,
    audit,
    bots,
    conversations,
    deliveries,
    endpoints,
    erasures,
    exports,
    keys,
    live,
    operations,
    policies,
    rejects,
    sandbox,
    saved_views,
    sessions,
    users,
)

# Variables of a conversation come before the conversation's sessions: see `conversations`.
_MODULES = (
    sessions,
    saved_views,
    live,
    analytics,
    exports,
    conversations,
    users,
    erasures,
    sandbox,
    bots,
    policies,
    endpoints,
    deliveries,
    keys,
    audit,
    rejects,
    operations,
)
ROUTERS: tuple[APIRouter, ...] = tuple(module.router for module in _MODULES)
