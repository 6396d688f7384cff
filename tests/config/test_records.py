"""Records that are stored in Redis say what each of their fields means."""

import inspect
import re

import pytest
from msgspec import Struct

from app.config.records import BotRecord, EndpointConfig, KeyConfig, Mark
from app.domain.records import Variable
from app.live.codec import EventRecord


@pytest.mark.parametrize("record", (BotRecord, EndpointConfig, KeyConfig, Mark, EventRecord, Variable))
def test_every_field_of_a_stored_record_is_described(record: type[Struct]) -> None:
    """By a comment on its line: its meaning and, where it has one, its unit."""
    source = inspect.getsource(record)

    assert [name for name in record.__struct_fields__ if not re.search(rf"^ +{name}: [^#\n]+  # \w", source, re.MULTILINE)] == []
