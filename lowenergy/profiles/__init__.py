"""Whole files of params by name: `lowenergy profile mnist` writes params.yaml as mnist.yaml has it, over the defaults.

A profile holds what differs from the one that it `extends`, or from default.yaml. Which teachers and branches there are
is one value: a profile that has some has no others.
"""

import copy
import io
import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from lowenergy.base import files
from lowenergy.base.nested import MISSING, laid_over, leaves
from lowenergy.params import ParamsError, read

FOLDER, PARAMS, DEFAULT = Path(__file__).parent, Path("params.yaml"), "default"
ENTRIES = ("teachers", "branches")
SAID = 6  # values of a user's own that a message names


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def described() -> list[tuple[str, str]]:
    """Each profile and the first sentence of its comment."""
    found = [(DEFAULT, "scikit-learn's 1,797 digits of 8x8: nothing to download, minutes on two cores")]
    for name in names():
        if name == DEFAULT:
            continue
        lines = takewhile(lambda line: line.startswith("#"), (FOLDER / f"{name}.yaml").read_text().splitlines())
        comment = " ".join(line.lstrip("# ") for line in lines)
        found.append((name, re.split(r"\. (?=[A-Z])", comment)[0].rstrip(".")))
    return found


def composed(name: str) -> dict[str, Any]:
    """All values of a profile: its own, over those of the one that it extends, over the defaults.

    Raises:
        ParamsError: there is no such profile.
    """
    if name not in names():
        raise ParamsError(f"{name}: no such profile; there are {', '.join(names())}")
    own = copy.deepcopy(_read(name))
    if name == DEFAULT:
        return own
    return over(own, composed(own.pop("extends", DEFAULT)))


def over(own: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """Values over others; which teachers and branches there are is one value."""
    return {**laid_over(own, below), **{which: own[which] for which in ENTRIES if which in own}}


@cache
def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(FOLDER / f"{name}.yaml")
    return values


def text(whole: dict[str, Any]) -> str:
    """All values as a file, with the comments of the defaults.

    Raises:
        ParamsError: one would be another when it is read.
    """
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    values = yaml.load(FOLDER / f"{DEFAULT}.yaml")
    _write(values, whole)
    out = io.StringIO()
    yaml.dump(values, out)
    # ruamel keeps a comment in its column, whatever comes before it; a name may have spaces before a #, too.
    tidy = re.sub(r"(?m)^(?!#)(.*\S) {2,}#", r"\1 #", out.getvalue())
    for found in (tidy, out.getvalue()):
        again = YAML(typ="safe").load(found)
        if again == whole:
            return found
    lost = _differences(_flat(again), _flat(whole))[0]
    raise ParamsError(f"{PARAMS}: YAML cannot hold {lost}: {_flat(whole)[lost]!a}; give it another name")


def _write(values: CommentedMap, new: dict[str, Any], at: str = "") -> None:
    """Set all values, and leave the comments where they are."""
    for key in values.keys() - new.keys():
        del values[key]
    for key, value in new.items():
        if key in values and values[key] == value:
            continue
        if key in values and isinstance(value, dict):
            _write(values[key], value, key)
        else:
            values[key] = _on_one_line(value) if isinstance(value, list) or at in ENTRIES else value


def _on_one_line(value: Any) -> CommentedMap | CommentedSeq:
    """{target: ebm, start: ebm, by: prune}"""
    made = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
    made.fa.set_flow_style()
    return made


def apply(name: str, *, force: bool = False) -> list[str]:
    """Write a profile into params.yaml; see write.

    Raises:
        ParamsError: there is no such profile.
    """
    return write(composed(name), f"lowenergy profile {name}", force=force)


def write(whole: dict[str, Any], command: str, *, force: bool = False) -> list[str]:
    """Write values into params.yaml.

    Args:
        command: that asked for it, for the message.
        force: overwrite values, too, that the closest profile does not have, and comments.
    Returns:
        What changed, a line each.
    Raises:
        ParamsError: there are such values or comments; nothing is written.
    """
    new, old = _flat(whole), _old()
    if not force:
        _refuse_comments(command)
        _refuse([place for place in _differences(old, new) if place in _own(old)], old, command)
    files.write_bytes(PARAMS, text(whole).encode())
    return [f"{place}: {old.get(place, 'none')} -> {new.get(place, 'none')}" for place in _differences(old, new)]


def check_free(command: str) -> None:
    """See that params.yaml can be written, and has no values or comments of the user's own.

    Raises:
        ParamsError, FileError: it cannot, or has.
    """
    files.check_place(PARAMS)
    old = _old()
    _refuse_comments(command)
    _refuse(_own(old), old, command)


def _old() -> dict[str, Any]:
    try:
        return _flat(read(PARAMS)) if PARAMS.exists() else {}
    except (ParamsError, AttributeError):
        raise ParamsError(f"{PARAMS}: not valid YAML; mend or delete it") from None


def _own(old: dict[str, Any]) -> list[str]:
    """Places of values that the closest profile does not have."""
    return min((_differences(old, _flat(composed(each))) for each in names()), key=len) if old else []


def _refuse(own: list[str], old: dict[str, Any], command: str) -> None:
    if own:
        said = ", ".join(f"{place}: {old.get(place, 'left out')}" for place in own[:SAID])
        said += f" and {len(own) - SAID} more" * (len(own) > SAID)
        raise ParamsError(
            f"{PARAMS} has values of your own, which would be overwritten: {said}; commit or copy them, "
            f"then `{command} --force`"
        )


def _refuse_comments(command: str) -> None:
    """All comments of a profile are those of the defaults, at the end of a line."""
    if not PARAMS.exists():
        return
    ours = tuple(_comments((FOLDER / f"{DEFAULT}.yaml").read_text()))
    if own := [found for found in _comments(PARAMS.read_text(errors="replace")) if not found.endswith(ours)]:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        raise ParamsError(
            f"{PARAMS} has comments of your own, which would be lost: {own[0]}{more}; commit or copy them, "
            f"then `{command} --force`"
        )


def _comments(text: str) -> list[str]:
    return [found.rstrip() for found in re.findall(r"(?m)(?:^|\s)(#.*)$", text)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted place; each entry of teachers and branches is one."""
    entries = {f"{which}.{name}": entry for which in ENTRIES for name, entry in (values.get(which) or {}).items()}
    return {**entries, **dict(leaves({key: part for key, part in values.items() if key not in ENTRIES}))}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [place for place in {**old, **new} if old.get(place, MISSING) != new.get(place, MISSING)]
