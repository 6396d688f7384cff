"""Changes of configuration by API: whose they are."""

from contextlib import AbstractAsyncContextManager

from app.api.auth import Principal
from app.archive.audit import Actor
from app.config.change import ConfigChange
from app.resources import Resources


def saving(resources: Resources, principal: Principal) -> AbstractAsyncContextManager[ConfigChange]:
    """The transaction of one change, in the name of the caller's key; see `ConfigWriter.changing`."""
    return resources.writer.changing(Actor(principal.key.name, principal.key.id))
