"""Reading params.yaml."""

from pathlib import Path

from lowenergy.params.checking import check
from lowenergy.params.section import ParamsError
from lowenergy.params.whole import Params


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        ParamsError: the file is missing, is not YAML, or does not fit the schema.
    """
    from ruamel.yaml import YAML  # only a project has such a file
    from ruamel.yaml.error import YAMLError

    try:
        values = YAML(typ="safe").load(Path(path))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in the project's root, or `git checkout {path}`") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    checked = check(values, str(path))
    _find_own(checked, str(path))
    return checked


def _find_own(p: Params, origin: str) -> None:
    """Files of the user's own must be there, and where stages would notice a change.

    Raises:
        ParamsError: they are not.
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
