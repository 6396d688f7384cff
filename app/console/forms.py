"""Forms made from the OpenAPI document: fields of a query or of a body, with their limits, and the values that a browser sends.

A field that the API gains is a field of its form at once. An empty field is left out of a request, so that its default holds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from msgspec import DecodeError, Struct, json

from app.console.api_calls import Json

Kind = Literal["text", "number", "choice", "yes_no", "many", "instant", "lines", "texts", "json", "group"]


class Field(Struct, frozen=True):
    """One input of a form."""

    name: str  # dotted path of the value
    kind: Kind
    description: str
    options: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    longest: int | None = None
    default: Any = None
    fields: tuple["Field", ...] = ()  # of a group

    @property
    def label(self) -> str:
        return self.name.rpartition(".")[2].replace("_", " ")

    @property
    def id(self) -> str:
        return "field-" + self.name.replace(".", "-").replace("_", "-")


class Document:
    """The OpenAPI document, as far as forms need it."""

    def __init__(self, document: Json) -> None:
        self._paths: Json = document["paths"]
        self._schemas: Json = document["components"]["schemas"]

    def query_fields(self, path: str, *, without: Sequence[str] = ()) -> list[Field]:
        """The parameters of a GET."""
        parameters = self._paths[path]["get"]["parameters"]
        return [
            self._field(each["name"], {**each["schema"], "description": each["description"]})
            for each in parameters
            if each["in"] == "query" and each["name"] not in without
        ]

    def fields(self, schema: str, *, within: str = "") -> list[Field]:
        """The properties of a component."""
        return [self._field(f"{within}{name}", each) for name, each in self.properties(schema).items()]

    def field(self, schema: str, name: str) -> Field:
        """One property of a component."""
        return self._field(name, self.properties(schema)[name])

    def properties(self, schema: str) -> Json:
        """Names and schemas of the properties of a component."""
        found: Json = self._schemas[schema]["properties"]
        return found

    def _field(self, name: str, schema: Json) -> Field:
        plain = self._plain(schema)
        kind, options = _kind(plain)
        group = tuple(self._field(f"{name}.{each}", one) for each, one in plain["properties"].items()) if kind == "group" else ()
        return Field(
            name,
            kind,
            description=schema.get("description", ""),
            options=options,
            least=plain.get("minimum"),
            most=plain.get("maximum"),
            longest=plain.get("maxLength"),
            default=schema.get("default"),
            fields=group,
        )

    def _plain(self, schema: Json) -> Json:
        """The schema without null among its types, and without a reference."""
        for choice in schema.get("anyOf", ()):
            if choice.get("type") != "null":
                return self._plain(choice)
        if "$ref" in schema:
            return self._plain(self._schemas[schema["$ref"].rpartition("/")[2]])
        return schema


def _kind(schema: Json) -> tuple[Kind, tuple[str, ...]]:
    """How a value of this schema is entered, and the values to choose from."""
    if "enum" in schema:
        return "choice", tuple(map(str, schema["enum"]))
    match schema.get("type"):
        case "array":
            options = schema["items"].get("enum")
            return ("many", tuple(options)) if options else ("lines", ())
        case "object":
            return _object_kind(schema), ()
        case "string" if schema.get("format") == "date-time":
            return "instant", ()
        case other:
            kind, options = _PLAIN.get(other or "", ("text", ()))
            return kind, options


_PLAIN: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "boolean": ("yes_no", ("true", "false")),
    "integer": ("number", ()),
    "number": ("number", ()),
}


def _object_kind(schema: Json) -> Kind:
    if "properties" in schema:
        return "group"
    return "texts" if schema.get("additionalProperties", {}).get("type") == "string" else "json"


def entered(field: Field, value: Any) -> Any:  # noqa: ANN401 - any JSON
    """A JSON value as its input shows it; of `many` a list. A text that a browser sent is shown as it was sent."""
    if field.kind == "many":
        return value or []
    if value is None:
        return ""
    if isinstance(value, str):
        return value.removesuffix("Z").partition("+")[0] if field.kind == "instant" else value
    return _ENTERED.get(field.kind, str)(value)


_ENTERED: Mapping[Kind, Callable[[Any], str]] = {
    "lines": "\n".join,
    "texts": lambda value: "\n".join(f"{name}: {text}" for name, text in value.items()),
    "json": lambda value: json.format(json.encode(value), indent=2).decode(),
    "yes_no": lambda value: str(value).lower(),
}


def value_of(fields: Sequence[Field], given: Sequence[tuple[str, str]]) -> Json:
    """The JSON object that a form's values stand for. Text that is no value of its field is passed on for the API to judge."""
    values: dict[str, list[str]] = {}
    for name, text in given:
        values.setdefault(name, []).append(text)
    return dict(_values(fields, values))


def _values(fields: Sequence[Field], given: Mapping[str, list[str]]) -> Iterator[tuple[str, Any]]:
    for field in fields:
        key = field.name.rpartition(".")[2]
        if field.kind == "group":
            group = dict(_values(field.fields, given))
            if field.name in given:  # its checkbox
                yield key, group
        elif any(given.get(field.name, ())):
            yield key, _value(field, given[field.name])


def _value(field: Field, texts: list[str]) -> Any:  # noqa: ANN401 - any JSON
    text = texts[-1]
    match field.kind:
        case "many":
            return texts
        case "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "texts":
            pairs = (line.partition(":") for line in text.splitlines() if line.strip())
            return {name.strip(): value.strip() for name, _, value in pairs}
        case "number" | "yes_no" | "json":
            try:
                return json.decode(text)
            except DecodeError:
                return text
    return text


def as_query(fields: Sequence[Field], given: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parameters of a query as the API reads them: an input of an instant sends UTC without saying so."""
    kinds = {field.name: field.kind for field in fields}
    sent: list[tuple[str, str]] = []
    for name, text in given:
        match kinds.get(name):
            case "instant" if "T" in text and not text.endswith("Z") and "+" not in text:
                sent.append((name, f"{text}Z"))
            case "lines":
                sent += [(name, part) for part in text.split()]
            case "texts":
                key, _, value = text.partition("=")
                sent.append((f"{name}.{key.strip()}", value.strip()))
            case _:
                sent.append((name, text))
    return sent
