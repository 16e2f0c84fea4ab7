"""What each stage needs to know about a teacher, as files: effective values of its entry, kind and shared section.

A stage of dvc.yaml that is written once for all branches cannot name the section of its target's kind. It depends on a
file in data/recipes instead, and runs again if the values that it reads have changed, wherever they stand in
params.yaml.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lowenergy.base import files
from lowenergy.params import Params, Teacher, kinds

FOLDER = Path("data/recipes")
LEFT_OUT = {  # recipe: the sections of a teacher that it does not need
    "train": {"matching", "evaluate"},
    "matching": {"architecture", "evaluate"},
    "evaluate": {"architecture", "train", "matching"},
}


def write(p: Params) -> None:
    for name, teacher in p.teachers.items():
        for recipe, left_out in LEFT_OUT.items():
            values: dict[str, Any] = {"kind": teacher.kind, **teacher.section.model_dump(exclude=left_out)}
            files.write_json(FOLDER / f"{name}.{recipe}.json", values)


def read(name: str, recipe: str) -> Teacher:
    """Read a teacher with only the sections that are in the recipe.

    Raises:
        FileError: there is no such recipe.
    """
    path = FOLDER / f"{name}.{recipe}.json"
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise files.FileError(f"{path}: no such file; `dvc repro recipes` makes it") from None
    kind = values.pop("kind")
    schema = kinds()[kind]
    fields: dict[str, Any] = schema.model_fields
    sections = {key: TypeAdapter(fields[key].annotation).validate_python(part) for key, part in values.items()}
    section = schema.model_construct(**sections)
    for other in fields.keys() - sections.keys():
        section.__dict__.pop(other, None)  # a default, which may not be this teacher's
    return Teacher(kind, section)
