"""Lay entries over sections, and check all of them.

A model is an entry. A teacher's own values lie over the section of its kind, which lies over the section that kinds
share (`energies` for ebm and jem). A branch's own values lie over the section of its method.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from lowenergy.base.nested import MISSING, value_at
from lowenergy.params import entries
from lowenergy.params.entries import LINKS, Branch, Kind, Method, Teacher
from lowenergy.params.messages import Layer, explain, validated
from lowenergy.params.section import ParamsError, Section
from lowenergy.params.whole import Params

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")  # for files, whose names may have at most 255 with what is added
TAKEN = ("scorer", "reference")  # files in models/ that are not entries
S = TypeVar("S", bound=Section)


def check(values: Any, origin: str = "params.yaml") -> Params:
    """Validate a parsed params file.

    Raises:
        ParamsError: one line per problem: file, field, value, what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ParamsError(f"{origin}: expected sections such as `seed: 0`, found {type(values).__name__}")
    problems: list[str] = []
    whole = dict(values)
    kinds, methods = _in_order(entries.kinds(), values), _in_order(entries.methods(), values)
    schemas: dict[str, type[Section]] = {**kinds, **methods}
    shared = {kind.over for kind in kinds.values() if kind.over is not None}
    for name in values.keys() - Params.model_fields.keys() - kinds.keys() - methods.keys() - shared:
        problems.append(f"{name} is no section; `lowenergy params` lists all of them")
    for name in shared - kinds.keys():
        whole.pop(name, None)
    for name, schema in schemas.items():
        if name not in values:
            problems.append(f"{name} is missing ({'kind' if name in kinds else 'method'} {name})")
        else:
            whole[name] = validated(schema, _layers(values, schema, name), problems)
    for name in sorted(shared - kinds.keys()):
        problems += _bad_shared(name, values, kinds, problems)
    if isinstance(values.get("teachers"), Mapping):
        whole["teachers"] = teachers = _teachers(values, kinds, problems)
        if values["teachers"] and isinstance(values.get("branches"), Mapping):
            whole["branches"] = _branches(values, methods, teachers, problems)
    said = {name for name in schemas if name in values and whole[name] is None}  # their problems are listed
    said |= {"teachers"} if values.get("teachers") and not whole["teachers"] else set()
    try:
        checked = Params.model_validate(whole)
    except ValidationError as error:
        unsaid = [each for each in error.errors() if not (each["loc"] and each["loc"][0] in said)]
        problems += [explain(each, Params, [((), whole)]) for each in unsaid]
    if problems:
        raise ParamsError("\n".join(f"{origin}: {line}" for line in dict.fromkeys(problems)))
    return checked


def _in_order(schemas: Mapping[str, type[S]], values: Mapping[str, Any]) -> dict[str, type[S]]:
    """The schemas in the order of the file, then those that are missing there."""
    return {name: schemas[name] for name in {**values, **schemas} if name in schemas}


def _bad_shared(name: str, values: Any, kinds: Mapping[str, type[Kind]], problems: list[str]) -> list[str]:
    """Why a section that kinds share cannot lie below theirs: it is missing, or where theirs have a section it has
    something else, which theirs would hide."""
    sharing = {key: kind for key, kind in kinds.items() if kind.over == name}
    if name not in values:
        return [f"{name} is missing (what kinds {' and '.join(sharing)} share)"]
    fields = {key: field.annotation for kind in sharing.values() for key, field in kind.model_fields.items()}
    sections = [key for key, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Section)]
    there = {".".join(place): value_at(values, place) for place in [(name,), *((name, key) for key in sections)]}
    return [
        f"{place} = {value!r}: input should be a valid dictionary"
        for place, value in there.items()
        if value is not MISSING and not isinstance(value, Mapping)
        if not any(line.startswith(f"{place} = ") for line in problems)  # said of a kind that hides nothing
    ]


def _layers(values: Any, schema: type[Section], name: str, entry: Layer | None = None) -> list[Layer]:
    """Layers of values from the top: the entry's, if any, those of its kind or method, those that kinds share."""
    names = [name, *([over] if (over := getattr(schema, "over", None)) and over in values else [])]
    return [*([entry] if entry else []), *(((name,), values.get(name, {})) for name in names)]


def _teachers(values: Any, kinds: Mapping[str, type[Kind]], problems: list[str]) -> dict[str, Teacher]:
    made = {}
    for name, entry in _entries(values, "teachers", problems).items():
        kind = entry.get("kind")
        if kind not in list(kinds):
            what = "kind is missing" if kind is None else f"kind = {kind!r} is no kind"
            problems.append(f"teachers.{name}.{what}; there are {', '.join(kinds)}")
            continue
        own = {key: value for key, value in entry.items() if key != "kind"}
        section = validated(kinds[kind], _layers(values, kinds[kind], kind, (("teachers", name), own)), problems)
        made[name] = Teacher(kind, section)
    return made


def _branches(
    values: Any, methods: Mapping[str, type[Method]], teachers: Mapping[str, Teacher], problems: list[str]
) -> dict[str, Branch]:
    entries = _entries(values, "branches", problems)
    named = list(values["teachers"])  # including those that have mistakes of their own
    allowed = {"target": named, "start": [*named, *values["branches"]], "by": list(methods)}
    kind_of = {"target": "teacher", "start": "model", "by": "method"}
    made: dict[str, Branch] = {}
    for name, entry in entries.items():
        if name in named:
            problems.append(f"branches.{name}: teachers has one of this name, too; give it another")
        wrong = [key for key in LINKS if entry.get(key) not in allowed[key]]
        for key in wrong:
            if key in entry:
                there = ", ".join(map(str, allowed[key]))
                problems.append(f"branches.{name}.{key} = {entry[key]!r} is no {kind_of[key]}; there are {there}")
            else:
                problems.append(f"branches.{name}.{key} is missing ({LINKS[key]})")
        if wrong:
            continue
        own = {key: value for key, value in entry.items() if key not in LINKS}
        schema = methods[entry["by"]]
        section = validated(schema, _layers(values, schema, entry["by"], (("branches", name), own)), problems)
        made[name] = Branch(entry["target"], entry["start"], entry["by"], section)
    problems += [line for name in made for line in _bad_start(name, made, teachers, methods)]
    return made


def _entries(values: Any, which: str, problems: list[str]) -> dict[str, Any]:
    """The well-formed entries of `teachers` or `branches`; the others are added to the problems."""
    well_formed = {}
    for name, entry in values[which].items():
        if not (isinstance(name, str) and NAME.fullmatch(name)) or name in TAKEN:
            problems.append(
                f"{which}: {name!r} cannot be a name: lower-case letters, digits, - and _ make one of at most 100, and "
                f"{' and '.join(TAKEN)} are taken"
            )
        elif not isinstance(entry, Mapping):
            example = "{kind: ebm}" if which == "teachers" else "{target: ebm, start: ebm, by: prune}"
            problems.append(f"{which}.{name} = {entry!r}: give a dictionary such as {example}")
        else:
            well_formed[name] = entry
    return well_formed


def _bad_start(
    name: str, branches: Mapping[str, Branch], teachers: Mapping[str, Teacher], methods: Mapping[str, type[Method]]
) -> list[str]:
    """Why a branch cannot be made from the model that it names; an empty list if it can."""
    branch, links = branches[name], [name]
    while (start := branches[links[-1]].start) not in teachers:
        if start in links:
            circle = sorted(links[links.index(start) :])  # the same line for each of them, reported once
            return [f"branches: {', '.join(circle)} start from each other; let one of them start from a teacher"]
        if start not in branches:
            return []  # already reported for the branch that names it
        links.append(start)
    if branch.start in branches and methods[by := branches[branch.start].by].coded:
        return [
            f"branches.{name}.start = {branch.start!r} has been coded by {by}, and no method goes on from codes; "
            f"start from {branches[branch.start].start}"
        ]
    root, target = teachers[start], teachers.get(branch.target)
    if target is None:
        return []  # already reported, too
    heads = [getattr(each.architecture, "head", None) if each.section else None for each in (root, target)]
    if root.kind != target.kind or heads[0] != heads[1]:
        what = "kind" if root.kind != target.kind else "head"
        of_root, of_target = (root.kind, target.kind) if what == "kind" else heads
        return [
            f"branches.{name}: start {branch.start} comes from teacher {start} of {what} {of_root}, target "
            f"{branch.target} is of {what} {of_target}; both must be the same"
        ]
    return []
