"""Turn values into a section, or into messages that say where a value stands, what it is and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lowenergy.base.nested import MISSING, laid_over, value_at
from lowenergy.params import entries
from lowenergy.params.section import ParamsError, Section

Layer = tuple[tuple[str, ...], Any]  # a place in the file, and the values there
S = TypeVar("S", bound=Section)


def said(field: Any) -> str:
    """What a field means, on one line."""
    return " ".join((field.description or "").split())


def meaning(schema: Any, place: Sequence[Any]) -> str:
    """The description of the field at this place of a section; '' if there is no such place."""
    text = ""
    for key in place:
        if not (isinstance(schema, type) and issubclass(schema, BaseModel)) or key not in schema.model_fields:
            return ""
        text, schema = said(schema.model_fields[key]), schema.model_fields[key].annotation
    return text


def explain(error: Any, schema: type[BaseModel], layers: Sequence[Layer]) -> str:
    """One line: the field where it stands in the file, its value, and what is allowed."""
    place = tuple(key for key in error["loc"] if not (isinstance(key, str) and key.startswith("function-")))
    # A value stands in the first layer that has it; a missing value is reported in the section, not in an entry.
    section = next(at for at, _ in layers if len(at) < 2)
    home = next((at for at, values in layers if value_at(values, place) not in (MISSING, {})), section)
    field, message, value = ".".join(map(str, (*home, *place))), error["msg"], error["input"]
    means = f" ({described})" if (described := meaning(schema, place)) else ""
    if error["type"] == "extra_forbidden":
        return f"{field} = {value!r} is not a parameter; `lowenergy params` lists all of them"
    if error["type"] == "missing":
        return f"{field} is missing{means}"
    if error["type"] == "value_error":
        return f"{field + ': ' if field else ''}{error['ctx']['error']}"
    return f"{field} = {value!r}: {message[0].lower()}{message[1:]}{means}"


def validated(schema: type[Any], layers: Sequence[Layer], problems: list[str]) -> Any:
    """Make a section from the values of all layers, the first over the others. If it is not valid, return None and add
    lines to `problems`."""
    values: Any = {}
    for _, layer in reversed(layers):
        values = laid_over(layer, values)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems += [explain(each, schema, layers) for each in error.errors()]
        return None


def completed(schema: type[S], name: str, values: Mapping[str, Any]) -> S:
    """Make a section from some values. The others are the schema's defaults, also within sections given in part.

    Args:
        name: the section's, for messages.
    Raises:
        ParamsError: one line per problem: field, value, what is allowed.
    """
    known = {key: field.default for key, field in schema.model_fields.items() if not field.is_required()}
    defaults = {key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in known.items()}
    problems: list[str] = []
    section: S = validated(schema, [((name,), values), ((name,), defaults)], problems)
    if problems:
        raise ParamsError("\n".join(dict.fromkeys(problems)))
    return section


def method(name: str, values: Mapping[str, Any]) -> entries.Method:
    """Make the section of a method, shipped or added, from some values; see `completed`.

    Raises:
        ParamsError: there is no such method, or a value is not allowed.
    """
    if not isinstance(name, str) or name not in entries.methods():
        raise ParamsError(f"{name!r} is no method; there are {', '.join(entries.methods())}")
    return completed(entries.methods()[name], name, values)
