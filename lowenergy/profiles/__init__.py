"""Whole params files by name: `lowenergy profile mnist` writes mnist.yaml's values over the defaults to params.yaml.

A profile holds only what differs from the profile that it `extends`, or from default.yaml. `teachers` and `branches`
count as one value each: a profile that lists some of its own inherits no others.
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
SAID = 6  # values of the user's own that a message names


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def described() -> list[tuple[str, str]]:
    """Each profile with the first sentence of its comment."""
    sentences = [(DEFAULT, "scikit-learn's 1,797 digits of 8x8: nothing to download, minutes on two cores")]
    for name in names():
        if name == DEFAULT:
            continue
        lines = takewhile(lambda line: line.startswith("#"), (FOLDER / f"{name}.yaml").read_text().splitlines())
        comment = " ".join(line.lstrip("# ") for line in lines)
        sentences.append((name, re.split(r"\. (?=[A-Z])", comment)[0].rstrip(".")))
    return sentences


def composed(name: str) -> dict[str, Any]:
    """All values of a profile: its own, laid over those of the profile it extends, laid over the defaults.

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
    """Lay values over others; `teachers` and `branches` are each replaced as a whole."""
    return {**laid_over(own, below), **{which: own[which] for which in ENTRIES if which in own}}


@cache
def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(FOLDER / f"{name}.yaml")
    return values


def text(whole: dict[str, Any]) -> str:
    """All values as the text of a file, with the comments of the defaults.

    Raises:
        ParamsError: a value would not be the same when it is read again.
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
    # ruamel keeps a comment in its column, whatever comes before it. Tidying may spoil a name with spaces before a #.
    tidy = re.sub(r"(?m)^(?!#)(.*\S) {2,}#", r"\1 #", out.getvalue())
    for content in (tidy, out.getvalue()):
        again = YAML(typ="safe").load(content)
        if again == whole:
            return content
    lost = _differences(_flat(again), _flat(whole))[0]
    raise ParamsError(f"{PARAMS}: YAML cannot hold {lost}: {_flat(whole)[lost]!a}; give it another name")


def _write(values: CommentedMap, new: dict[str, Any], at: str = "") -> None:
    """Set all values in place, leaving the comments where they are."""
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
    """Make a value print on one line: {target: ebm, start: ebm, by: prune}."""
    on_one_line = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
    on_one_line.fa.set_flow_style()
    return on_one_line


def apply(name: str, *, force: bool = False) -> list[str]:
    """Write a profile into params.yaml; see write.

    Raises:
        ParamsError: there is no such profile; or see write.
    """
    return write(composed(name), f"lowenergy profile {name}", force=force)


def write(whole: dict[str, Any], command: str, *, force: bool = False) -> list[str]:
    """Write values into params.yaml.

    Args:
        command: the command that asked for it, for the message.
        force: also overwrite comments, and values that the closest profile does not have.
    Returns:
        One line for each value that changed.
    Raises:
        ParamsError: without force, there are such values or comments. Nothing is written then.
    """
    new, old = _flat(whole), _old()
    if not force:
        _refuse_comments(command)
        _refuse([place for place in _differences(old, new) if place in _own(old)], old, command)
    files.write_bytes(PARAMS, text(whole).encode())
    return [f"{place}: {old.get(place, 'none')} -> {new.get(place, 'none')}" for place in _differences(old, new)]


def check_free(command: str) -> None:
    """Raise unless params.yaml can be written, and has no values or comments of the user's own.

    Args:
        command: the command that asks, for the message.
    Raises:
        OSError, FileError: it cannot be written.
        ParamsError: it has such values or comments, or is not valid YAML.
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
    """The places whose values differ from those of the closest profile, the one with the fewest differences."""
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
    """Raise if params.yaml has comments of the user's own.

    A profile has no comments but those of the defaults, each at the end of a line.

    Raises:
        ParamsError: there are others.
    """
    if not PARAMS.exists():
        return
    ours = tuple(_comments((FOLDER / f"{DEFAULT}.yaml").read_text()))
    if own := [comment for comment in _comments(PARAMS.read_text(errors="replace")) if not comment.endswith(ours)]:
        more = f" and {len(own) - 1} more" if len(own) > 1 else ""
        raise ParamsError(
            f"{PARAMS} has comments of your own, which would be lost: {own[0]}{more}; commit or copy them, "
            f"then `{command} --force`"
        )


def _comments(text: str) -> list[str]:
    return [comment.rstrip() for comment in re.findall(r"(?m)(?:^|\s)(#.*)$", text)]


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted place; each entry of teachers and branches is a single value."""
    entries = {f"{which}.{name}": entry for which in ENTRIES for name, entry in (values.get(which) or {}).items()}
    return {**entries, **dict(leaves({key: part for key, part in values.items() if key not in ENTRIES}))}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [place for place in {**old, **new} if old.get(place, MISSING) != new.get(place, MISSING)]
