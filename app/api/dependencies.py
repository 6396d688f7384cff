"""Hands a process's resources to its routes."""

from typing import Annotated, cast

from fastapi import Depends, Request

from app.resources import Resources


def resources_of(request: Request) -> Resources:
    return cast("Resources", request.app.state.resources)


ResourcesDep = Annotated[Resources, Depends(resources_of)]
