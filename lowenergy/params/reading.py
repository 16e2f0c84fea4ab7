"""Reading params.yaml."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lowenergy.base.errors import one_line
from lowenergy.base.nested import value_at
from lowenergy.params.checking import check
from lowenergy.params.data import check_place
from lowenergy.params.section import ParamsError
from lowenergy.params.whole import Params

DEEPEST = 32  # levels of sections and lists inside each other


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, is not YAML or does not fit the schema; or files that it names are missing or
            in the wrong place.
    """
    checked = check(read(path), str(path))
    _find_own(checked, str(path))
    if checked.data.source == "folder":
        check_place(checked.data.folder)
    return checked


def read(path: str | Path) -> Any:
    """The values of a YAML file.

    Raises:
        ParamsError: the file is missing, is not YAML, or is nested too deeply, perhaps without end.
    """
    from ruamel.yaml import YAML  # imported here: only a project has such a file
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in the project's root, or `git checkout {path}`") from None
    except (YAMLError, ValueError, RecursionError) as error:  # Python reads no integer of 5,000 digits
        raise ParamsError(f"{path}: not valid YAML: {one_line(error)}") from None
    level, depth = [values], 0
    while level := list({id(part): part for whole in level for part in _parts(whole)}.values()):
        depth += 1
        if depth > DEEPEST:
            raise ParamsError(
                f"{path}: more than {DEEPEST} sections or lists in each other; an alias may lead to itself"
            )
    return values


@contextmanager
def held(*places: str) -> Iterator[None]:
    """Hold a stage to the values that it has read: when it ends, DVC notes those that are in the file by then.

    Raises:
        ParamsError: some have changed since it began.
    """
    before = read("params.yaml")
    yield
    after = read("params.yaml")
    if changed := [place for place in places if value_at(after, place) != value_at(before, place)]:
        raise ParamsError(
            f"params.yaml: {', '.join(changed)} changed while this stage ran, and DVC would take what it made for made "
            "with the new values; run it again"
        )


def _parts(whole: Any) -> list[Any]:
    """The sections and lists directly inside another one."""
    parts = whole.values() if isinstance(whole, dict) else whole if isinstance(whole, list) else ()
    return [part for part in parts if isinstance(part, dict | list)]


def _find_own(p: Params, origin: str) -> None:
    """Check that the user's own files exist, in places where stages would notice a change.

    Raises:
        ParamsError: some do not.
    """
    problems = []
    for place, architecture in p.architectures.items():
        own = {"weights": architecture.weights}
        own["name"] = architecture.name.partition(":")[0] if ":" in architecture.name else None
        for key, file in own.items():
            if file is None:
                continue
            if not Path(file).is_file():
                problems.append(f"{origin}: {place}.{key} {file}: no such file")
            elif not Path(file).resolve().is_relative_to(Path(p.networks).resolve()):
                problems.append(
                    f"{origin}: {place}.{key} {file} is not in networks: {p.networks}, so that stages would not notice "
                    f"its changes; set networks to {Path(file).parent if '/' in file else file}"
                )
    if problems:
        raise ParamsError("\n".join(problems))
