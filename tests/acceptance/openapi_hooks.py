"""Hooks of schemathesis: valid requests that may be refused since no schema can say why, and requests that would end a run.

A refusal passes only if every fault in it is in `BEYOND_SCHEMAS`, so a limit that a schema could say and does not is still found.
"""

import os
import re
from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.openapi.checks import RejectedPositiveData

BOT = "shop"
OWN_KEYS = "OPENAPI_OWN_KEYS"
"""Variable with the ids of the keys that a run asks with."""

ANY = ".*"
BEYOND_SCHEMAS = {
    # where, what: why
    ("cursor", "is not a cursor of this list"): "a cursor carries a digest of its list's filters",
    ("from", "it is not before `to`"): "two parameters together",
    ("after", "it is no place of this export"): "sessions and messages have places of different forms",
    ("clock_mode", "it is for sandbox bots.*|this bot goes by real time"): "depends on another field, or on the bot",
    ("endpoint_id", "give `bot` or `endpoint_id`.*"): "one of two fields, which generators of clients cannot express",
    ("to", "give either `seconds` or `to`"): "one of two fields, which generators of clients cannot express",
    (r"bots\[\d+\]", "there is no bot .*"): "depends on which bots exist",
    ("name", "a key has a name.*"): "null is the default of a field that is left out",
    (ANY, "it is nested deeper than .*|it holds .*|it takes .* bytes as JSON.*"): "limits of free JSON as a whole",
    (r"(.*\.)?reminder\.minutes", r"\d+ given"): "less than another field",
    (r".*texts", "there is no text for `default`"): "a key among those that a pattern allows",
    (r".*texts\..*", "there is no placeholder .*"): "braces within a text",
    ("url", ANY): "hosts and addresses are looked up",
    ("group_by", ANY): "so many of some of the names, and of the groups that they make",
    ("time_zone", ANY): "the names of the time-zone database",
}
_ABSENT = "00000000-0000-4000-8000-000000000000"


def filter_failure(context: schemathesis.HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether a failure counts."""
    del context
    if isinstance(failure, AcceptedNegativeData) and case.path.endswith("/batch") and response.status_code == 200:
        return not response.json()["refused"]  # it refuses each bad entry by itself
    if not isinstance(failure, RejectedPositiveData) or response.status_code != 422:
        return True
    faults = response.json().get("errors", ())
    return not faults or not all(map(_is_beyond_schemas, faults))


def before_call(context: schemathesis.HookContext, case: Case[Any], kwargs: dict[str, object]) -> None:
    """Keep the bot that most requests name, and the keys that they are sent with."""
    del context, kwargs
    named = case.path_parameters
    if (case.method, case.path) == ("DELETE", "/v1/bots/{bot}") and named.get("bot") == BOT:
        named["bot"] = "another"
    if str(named.get("key_id")) in os.environ.get(OWN_KEYS, "").split():
        named["key_id"] = _ABSENT


def _is_beyond_schemas(fault: dict[str, str]) -> bool:
    return any(re.fullmatch(where, fault["where"]) and re.fullmatch(what, fault["what"]) for where, what in BEYOND_SCHEMAS)


schemathesis.hook(filter_failure)
schemathesis.hook(before_call)
