"""An engine on the test's own database."""

from tests.archive.conftest import engine

__all__ = ["engine"]
