"""Reads decoded JSON as a record, by the record's own types, and gathers every fault with its path.

msgspec's decoder stops at the first fault. Where all of them are wanted, this walks the same types: limits are written once, as
`Meta` of the fields. Two keys of a `Meta`'s `extra` help it: `expected` says in words what is expected, and `check` is a function
from a value to the faults that types cannot express, each with its path within the value.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from msgspec import Struct, ValidationError, convert, inspect, json

from app.domain.errors import Fault

T = TypeVar("T", bound=Struct)

_LONGEST_SHOWN = 60


def read(record: type[T], value: object) -> tuple[T | None, list[Fault]]:
    """The record that `value` (decoded JSON) describes, or None and every fault, in the order of `value`."""
    reader = _Reader()
    made = reader.read(_type_of(record), value, "")
    return (None, reader.faults) if reader.faults else (made, [])


def shown(value: object) -> str:
    """A value as JSON, short enough to be read."""
    try:
        encoded = json.encode(value).decode()
    except (UnicodeEncodeError, OverflowError, RecursionError):
        return "a value that JSON cannot hold"
    return encoded if len(encoded) <= _LONGEST_SHOWN else f"{encoded[:_LONGEST_SHOWN]}…"


@lru_cache(maxsize=64)
def _type_of(record: type[Struct]) -> inspect.Type:
    return inspect.type_info(record)


class _Reader:
    """One walk over one value. A faulty part is read as None; the faults say so."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def read(self, kind: inspect.Type, value: Any, path: str, expected: str | None = None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(kind, inspect.Metadata):
            return _READERS[type(kind)](self, kind, value, path, expected)
        extra = kind.extra or {}
        known = len(self.faults)
        made = self.read(kind.type, value, path, extra.get("expected", expected))
        if len(self.faults) == known and "check" in extra:
            self.faults += [Fault(f"{path}{fault.where}", fault.what, fault.hint) for fault in extra["check"](made)]
        return made

    def fault(self, path: str, what: str, expected: str) -> None:
        self.faults.append(Fault(path, what, expected))

    def unexpected(self, path: str, value: object, expected: str) -> None:
        self.fault(path, f"{shown(value)} given", f"{expected} is expected")

    def anything(self, _kind: inspect.Type, value: Any, _path: str, _expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        return value

    def boolean(self, _kind: inspect.Type, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, bool):
            self.unexpected(path, value, expected or "true or false")
        return value

    def whole(self, kind: inspect.IntType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, float) and value.is_integer():  # JSON has one kind of number: 60.0 is a whole one
            value = int(value)
        fits = type(value) is int and (kind.ge is None or value >= kind.ge) and (kind.le is None or value <= kind.le)
        if not fits:
            bounds = "" if kind.ge is None else f" from {kind.ge} to {kind.le}"
            self.unexpected(path, value, expected or f"a whole number{bounds}")
        return value

    def number(self, _kind: inspect.Type, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.unexpected(path, value, expected or "a number")
        return value

    def text(self, kind: inspect.StrType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, str):
            self.unexpected(path, value, expected or "a text")
        elif not _fits(kind, len(value)):
            self.fault(path, f"{len(value)} characters given", _allowed(kind))
        elif kind.pattern is not None and not re.search(kind.pattern, value):
            self.unexpected(path, value, expected or f"a text that matches {kind.pattern}")
        return value

    def instant(self, _kind: inspect.Type, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        try:
            made = convert(value, datetime)
        except ValidationError:
            made = None
        if made is None or made.tzinfo is None:
            self.unexpected(path, value, expected or "RFC 3339 with an offset")
        return made

    def choice(self, kind: inspect.LiteralType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, str) or value not in kind.values:
            self.unexpected(path, value, expected or f"one of {', '.join(map(str, kind.values))}")
        return value

    def union(self, kind: inspect.UnionType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        members = [member for member in kind.types if not isinstance(member, inspect.NoneType)]
        if isinstance(members[0], inspect.StructType):
            if value is False or value == "off":
                return None
            fields = ", ".join(field.encode_name for field in members[0].fields)
            expected = f"an object with {fields}, or null for off,"
        if value is None and len(members) < len(kind.types):
            return None
        member = next((each for each in members[1:] if isinstance(each, inspect.IntType) and type(value) is int), members[0])
        return self.read(member, value, path, expected)

    def items(self, kind: inspect.VarTupleType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, list | tuple):
            self.unexpected(path, value, expected or "a list")
            return None
        if not _fits(kind, len(value)):
            self.fault(path, f"{len(value)} items given", _allowed(kind))
            return None
        return tuple(self.read(kind.item_type, item, f"{path}[{at}]") for at, item in enumerate(value))

    def mapping(self, kind: inspect.DictType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        if not isinstance(value, Mapping):
            self.unexpected(path, value, expected or "an object")
            return None
        if not _fits(kind, len(value)):
            self.fault(path, f"{len(value)} names given", _allowed(kind))
            return None
        return dict(self._pairs(kind, value, path))

    def _pairs(self, kind: inspect.DictType, value: Mapping[str, Any], path: str) -> Iterable[tuple[Any, Any]]:
        for name, item in value.items():
            known = len(self.faults)
            key = self.read(kind.key_type, name, f"{path}.{name}")
            if len(self.faults) == known:
                yield key, self.read(kind.value_type, item, f"{path}.{name}")

    def record(self, kind: inspect.StructType, value: Any, path: str, expected: str | None) -> Any:  # noqa: ANN401 - any JSON
        fields = {field.encode_name: field for field in kind.fields}
        if not isinstance(value, Mapping):
            self.unexpected(path, value, expected or "an object of fields")
            return None
        known = len(self.faults)
        made = {}
        for name, item in value.items():
            where = f"{path}.{name}" if path else str(name)
            if name not in fields:
                self.fault(where, "there is no such field", f"the fields are {', '.join(fields)}")
            else:
                made[fields[name].name] = self.read(fields[name].type, item, where)
        for name, field in fields.items():
            if field.required and name not in value:
                expected = _expected(field.type)
                self.fault(f"{path}.{name}" if path else name, "it is required", f"add it: {expected}" if expected else "add it")
        return kind.cls(**made) if len(self.faults) == known else None


def _fits(kind: inspect.StrType | inspect.VarTupleType | inspect.DictType, length: int) -> bool:
    return (kind.min_length or 0) <= length and (kind.max_length is None or length <= kind.max_length)


def _expected(kind: inspect.Type) -> str:
    """The values of a field of this type, in words; empty where the type does not say."""
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra or {}).get("expected", "")) or _expected(kind.type)
    return f"one of {', '.join(map(str, kind.values))}" if isinstance(kind, inspect.LiteralType) else ""


def _allowed(kind: inspect.StrType | inspect.VarTupleType | inspect.DictType) -> str:
    least = f"{kind.min_length} to" if kind.min_length else "at most"
    return f"{least} {kind.max_length} are allowed"


_READERS: dict[type[inspect.Type], Callable[..., Any]] = {
    inspect.AnyType: _Reader.anything,
    inspect.BoolType: _Reader.boolean,
    inspect.IntType: _Reader.whole,
    inspect.FloatType: _Reader.number,
    inspect.StrType: _Reader.text,
    inspect.DateTimeType: _Reader.instant,
    inspect.LiteralType: _Reader.choice,
    inspect.UnionType: _Reader.union,
    inspect.VarTupleType: _Reader.items,
    inspect.DictType: _Reader.mapping,
    inspect.StructType: _Reader.record,
}
