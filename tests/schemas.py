"""What holds of a published schema and a document that was written: nothing is missing from either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

OTHER: dict[type, Any] = {str: 7, bool: "yes", int: "1", float: "0.5", list: {}, dict: [], type(None): [[]]}
"""For every kind of value one of another kind."""


def strict(schema: Any) -> Any:
    """The same, but that objects with named keys have no others."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    return inner | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else inner


def mistakes(document: Any, schema: Any) -> list[str]:
    """Against the strict schema, of the document as JSON."""
    read = json.loads(json.dumps(document, allow_nan=False))
    found = Draft202012Validator(strict(schema)).iter_errors(read)
    return [f"{error.json_path}: {error.message:.200}" for error in found]


def unsaid(schema: Any, at: str = "") -> Iterator[str]:
    """Where anything would pass: a value of no type, an object without keys, a list without entries."""
    for key, inner in (schema.get("$defs", {}) | schema.get("properties", {})).items():
        yield from unsaid(inner, f"{at}/{key}")
    for inner in schema.get("anyOf", schema.get("oneOf", [])):
        yield from unsaid(inner, at)
    if {"$ref", "anyOf", "oneOf", "const", "enum"} & schema.keys():
        return
    within = {"object": "additionalProperties", "array": "items"}.get(schema.get("type", ""))
    if "type" not in schema or (within and "properties" not in schema and not isinstance(schema.get(within), dict)):
        yield at
    elif within and isinstance(inner := schema.get(within), dict):
        yield from unsaid(inner, f"{at}[]")


def brief(document: Any) -> Any:
    """With one entry of every shape in each list."""
    if isinstance(document, dict):
        return {key: brief(value) for key, value in document.items()}
    if not isinstance(document, list):
        return document
    return list({_shape(one): brief(one) for one in document}.values())


def _shape(document: Any) -> Any:
    if isinstance(document, dict):
        return tuple((key, _shape(value)) for key, value in document.items())
    if isinstance(document, list):
        return frozenset(map(_shape, document))
    return type(document)


def passing(document: Any, schema: Any) -> tuple[set[str], set[str]]:
    """What the published schema lets pass: the keys that may be taken out, and the values that may be of another kind.

    Keys of an object without named ones are no keys of the schema. Each is tried on the object or list that it is in.
    """
    document = json.loads(json.dumps(brief(document)))
    whole = Draft202012Validator(schema)
    assert whole.is_valid(document)
    without, other = set(), set()
    for place, key, name, validator in _places(document, whole, schema["$defs"]):
        odd = OTHER[type(place[key])]
        if isinstance(place, list):
            other |= {name} if validator.is_valid([odd]) else set()
            continue
        other |= {name} if validator.is_valid(place | {key: odd}) else set()
        less = {one: value for one, value in place.items() if one != key}
        without |= {name} if "properties" in validator.schema and validator.is_valid(less) else set()
    return without, other


def unnoticed(document: Any, schema: Any) -> set[str]:
    """The objects in which one more key would pass the strict schema."""
    document = json.loads(json.dumps(brief(document)))
    validator, found = Draft202012Validator(strict(schema)), set()
    assert validator.is_valid(document)
    for value, name in list(_objects(document)):
        value["a new key"] = [[]]
        found |= {name} if validator.is_valid(document) else set()
        del value["a new key"]
    return found


def _objects(document: Any, at: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    if isinstance(document, dict):
        yield document, at
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        if isinstance(value, dict | list):
            yield from _objects(value, f"{at}.{key}")


def _places(document: Any, validator: Any, defs: Any, at: str = "") -> Iterator[tuple[Any, Any, str, Any]]:
    """Every key and every entry: what it is in, the key, its name, and what checks that which it is in."""
    validator = _alone(document, validator, defs)
    schema = validator.schema
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        name = f"{at}.{key}".lstrip(".") if isinstance(document, dict) else f"{at}[]"
        yield document, key, name, validator
        if isinstance(value, dict | list):
            named = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            inner = named if isinstance(document, dict) else schema["items"]
            yield from _places(value, validator.evolve(schema=inner), defs, name)


def _alone(document: Any, validator: Any, defs: Any) -> Any:
    """What a reference leads to, and of several schemas that which the document is."""
    schema = validator.schema
    if "$ref" in schema:
        return _alone(document, validator.evolve(schema=defs[schema["$ref"].removeprefix("#/$defs/")]), defs)
    for one in schema.get("anyOf", []):
        if (which := validator.evolve(schema=one)).is_valid(document):
            return _alone(document, which, defs)
    return validator
