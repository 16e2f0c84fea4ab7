"""Overlays on params.yaml: `lowenergy profile mnist` writes profiles/mnist.yaml into it, comments kept."""

import io
import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lowenergy.base import files, params
from lowenergy.base.params import ParamsError

PROFILES, PARAMS = Path("profiles"), Path("params.yaml")
# Of a network, of energies: not in params.yaml where there are none; null takes them out.
OPTIONAL = ("weights", "arguments", "flip", "crop_padding", "flow_rest", "classification_weight", "classification_rise")


def names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def described() -> list[tuple[str, str]]:
    """Each profile and the first sentence of its comment."""
    found = []
    for name in names():
        lines = takewhile(lambda line: line.startswith("#"), (PROFILES / f"{name}.yaml").read_text().splitlines())
        comment = " ".join(line.lstrip("# ") for line in lines)
        found.append((name, re.split(r"\. (?=[A-Z])", comment)[0].rstrip(".")))
    return found


def _round_trip() -> YAML:
    yaml = YAML()
    yaml.width = 120
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _overlay(values: Any, changes: Any, at: str, changed: list[str]) -> None:
    for key, new in changes.items():
        field = f"{at}{key}"
        if key in OPTIONAL and (new is None or key not in values):
            old = values.pop(key, None)
            if new is not None:
                values[key] = new
            if old != new:
                changed.append(f"{field}: {old} -> {new}")
            continue
        if key not in values:
            raise ParamsError(f"{field} is not in params.yaml; see the spelling there")
        if field == "targets":  # which there are is the value
            if dict(values[key]) != new:
                changed.append(f"{field}: {', '.join(values[key])} -> {', '.join(new)}")
                values[key].clear()
                values[key].update(new)
        elif isinstance(new, dict):
            _overlay(values[key], new, f"{field}.", changed)
        elif values[key] != new:
            changed.append(f"{field}: {values[key]} -> {new}")
            if isinstance(new, list):
                values[key][:] = new
                values[key].fa.set_flow_style()  # on one line, with the comment after it; an empty list forgets that
            else:
                values[key] = new


def apply(name: str) -> list[str]:
    """Write a profile into params.yaml; nothing is written unless the result is valid.

    Returns:
        What changed, a line each.
    Raises:
        ParamsError: no such profile, or it does not fit the schema.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.exists():
        raise ParamsError(f"{path}: no such profile; there are {', '.join(names())}")
    params.load(PARAMS)
    yaml = _round_trip()
    values = yaml.load(PARAMS)
    changed: list[str] = []
    _overlay(values, YAML(typ="safe").load(path), "", changed)
    out = io.StringIO()
    yaml.dump(values, out)
    # ruamel keeps a comment in its column; going to a longer value and back must leave no trace.
    text = re.sub(r" {2,}#", " #", out.getvalue())
    params.check(YAML(typ="safe").load(text), str(path))
    files.write_bytes(PARAMS, text.encode())
    return changed
