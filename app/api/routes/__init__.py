"""Every route but the two of ingest, one module a resource."""

from fastapi import APIRouter

from app.api.routes import operations, sandbox, variables

ROUTERS: tuple[APIRouter, ...] = (operations.router, sandbox.router, variables.router)
