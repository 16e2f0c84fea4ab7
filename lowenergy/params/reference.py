"""All parameters, as `lowenergy params` prints them."""

from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter

from lowenergy.params import entries
from lowenergy.params.messages import said
from lowenergy.params.whole import Params

LOWER = {"minimum": "<=", "exclusiveMinimum": "<"}
UPPER = {"maximum": "<=", "exclusiveMaximum": "<"}


def listing() -> list[tuple[str, str, str]]:
    """Every parameter: its dotted name, what it may be, what it means."""

    def of(section: type[BaseModel], at: str) -> list[tuple[str, str, str]]:
        rows = []
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                rows += of(kind, f"{at}{name}.")
            else:
                rows.append((f"{at}{name}", _range(field), said(field)))
        return rows

    sections = {**entries.kinds(), **entries.methods()}
    return [*of(Params, ""), *(row for name, section in sections.items() for row in of(section, f"{name}."))]


def _range(field: Any) -> str:
    """What a field may be, as one would write it: `0 <= int < 10`."""
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    schema = TypeAdapter(kind)
    found = schema.json_schema()
    optional = any(kind.get("type") == "null" for kind in found.get("anyOf", []))
    found = next((kind for kind in found.get("anyOf", []) if kind.get("type") != "null"), found)
    if "enum" in found:
        text = " | ".join(map(str, found["enum"]))
    else:
        low = next((f"{found[key]:g} {sign} " for key, sign in LOWER.items() if key in found), "")
        high = next((f" {sign} {found[key]:g}" for key, sign in UPPER.items() if key in found), "")
        text = f"{low}{found.get('type', 'value')}{high}"
    return f"{text} | null" if optional else text
