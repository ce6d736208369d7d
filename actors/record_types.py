"""Whether a record that was read has the types that its class names: bytes may be msgpack and yet be no record of ours.

Made from the classes' own annotations, so that a new field needs no second place. Types only; no rule of a payment.
"""

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from actors.errors import StoreCorruptError

Record = TypeVar("Record")
_Test = Callable[[Any], bool]


def checked(record: Record) -> Record:
    """Give the record back, if each field is of its type. Raises StoreCorruptError."""
    kind: Any = type(record)
    for name, fits in _tests_of(kind):
        if not fits(getattr(record, name)):
            raise StoreCorruptError(f"{kind.__name__}.{name} is of another type")
    return record


@functools.cache
def _tests_of(kind: type[Any]) -> tuple[tuple[str, _Test], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((field.name, _test(hints[field.name])) for field in fields(kind))


def _test(hint: Any) -> _Test:
    """Give what tells whether a value is of the type. The types of records' fields are these, and no others."""
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if all(isinstance(part, type) for part in parts):
            classes = frozenset(parts)
            return lambda value: type(value) in classes
        tests = [_test(part) for part in parts]
        return lambda value: any(fits(value) for fits in tests)
    if origin is tuple and parts[-1] is Ellipsis:
        fits_each = _test(parts[0])
        return lambda value: type(value) is tuple and all(fits_each(part) for part in value)
    if origin is tuple:
        tests = [_test(part) for part in parts]
        return lambda value: (
            type(value) is tuple
            and len(value) == len(tests)
            and all(fits(part) for fits, part in zip(tests, value, strict=True))
        )
    if origin in (dict, Mapping):
        fits_key, fits_value = map(_test, parts)
        return lambda value: type(value) is dict and all(fits_key(k) and fits_value(v) for k, v in value.items())
    assert isinstance(hint, type), f"a record's field of type {hint} can't be checked"
    return lambda value: type(value) is hint  # exactly: True is no amount
