"""All parameters, as `lowenergy params` prints them."""

from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter

from lowenergy.params import entries
from lowenergy.params.messages import said
from lowenergy.params.whole import Params

LOWER = {"minimum": "<=", "exclusiveMinimum": "<"}
UPPER = {"maximum": "<=", "exclusiveMaximum": "<"}


def listing() -> list[tuple[str, str, str]]:
    """Every parameter: its dotted name, the values it may have, what it means."""

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
    """The values that a field may have, written like `0 <= int < 10`."""
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    schema = TypeAdapter(kind)
    allowed = schema.json_schema()
    optional = any(kind.get("type") == "null" for kind in allowed.get("anyOf", []))
    allowed = next((kind for kind in allowed.get("anyOf", []) if kind.get("type") != "null"), allowed)
    if "enum" in allowed:
        text = " | ".join(map(str, allowed["enum"]))
    else:
        low = next((f"{allowed[key]:g} {sign} " for key, sign in LOWER.items() if key in allowed), "")
        high = next((f" {sign} {allowed[key]:g}" for key, sign in UPPER.items() if key in allowed), "")
        text = f"{low}{allowed.get('type', 'value')}{high}"
    return f"{text} | null" if optional else text
