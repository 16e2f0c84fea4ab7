"""Resolve import paths, such as `torchvision.models.resnet18` or `nets/own.py:Net`.

torchvision.models.mobilenet_v2     a callable that gives a module
timm.create_model                   with arguments {model_name: mobilenetv3_small_050}
mynets.py:Net                       a class or function in a file
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from lowenergy.base.errors import UserError

_stamps: dict[Path, list[tuple[str, int, int]]] = {}  # by folder: its Python files, with time of change and size
_brought: dict[str, Path] = {}  # modules that are such files, or were imported by them from their folder -> the folder


class NetworkError(UserError):
    """A network cannot be built, or is not fit for what the project does with it; the message says what to change."""


def imported(name: str) -> Callable[..., Any]:
    """Return what an import path names.

    Raises:
        NetworkError: there is no such file, module or callable, or importing it fails.
    """
    if ":" in name:
        path, _, attribute = name.partition(":")
        if not Path(path).is_file():
            raise NetworkError(f"{name}: no file {path}; give its path from the project's root")
        try:
            module = _module_of(Path(path).resolve())
        except (Exception, SystemExit) as error:  # whatever the file's own code raises
            raise NetworkError(f"{name}: {path} cannot be run: {type(error).__name__}: {first_line(error)}") from None
    else:
        module_name, _, attribute = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise NetworkError(f"{name}: {error}; install it, or name a file as in mynets.py:Net") from None
        except Exception as error:
            raise NetworkError(f"{name}: {type(error).__name__} on import: {first_line(error)}") from None
    if not callable(made := getattr(module, attribute, None)):
        raise NetworkError(f"{name}: {name.removesuffix(attribute).rstrip('.:')} has no network {attribute}")
    return made


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])  # "Error(s) in loading state_dict for Net:"


def _module_of(file: Path) -> ModuleType:
    """Return the file as a module, which is run again only after a Python file of its folder has changed.

    It is in sys.modules while it runs, as dataclasses and pickle expect. Its folder is a package of its own, so
    `from .blocks import Block` finds the neighbour blocks.py, and so does `import blocks`.
    """
    folder = file.parent
    package = f"lowenergy_own_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    name = f"{package}.{file.stem.replace('.', '_')}"
    stamps = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.glob("*.py"))]
    if _stamps.get(folder) != stamps:
        _forget(lambda module, of: of == folder)
        _stamps[folder] = stamps
    with _neighbours_found(folder):
        if package not in sys.modules:
            _run(package, folder / "__init__.py", folder)
        return sys.modules.get(name) or _run(name, file)  # a package's __init__ may have imported it


def _run(name: str, file: Path, folder: Path | None = None) -> ModuleType:
    """Run the file as the module of this name; with a folder, as that folder's package, which needs no file."""
    if folder is not None and not file.is_file():
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
        return module
    places = [str(folder)] if folder else None
    module_spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


@contextmanager
def _neighbours_found(folder: Path) -> Iterator[None]:
    """Within the context, `import blocks` finds this folder's blocks.py first, and a folder of the project by its path.

    It never finds the blocks.py of another folder of networks that was imported before. Later imports look here last.
    """
    stems = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    _forget(lambda module, of: of != folder and module.partition(".")[0] in stems)
    before = set(sys.modules)
    own = [str(folder), str(Path.cwd())]
    sys.path[:0] = own
    try:
        yield
    finally:
        for place in own:
            sys.path.remove(place)
        sys.path += [place for place in own if place not in sys.path]
        for name in set(sys.modules) - before:
            file, top = getattr(sys.modules[name], "__file__", None), name.partition(".")[0]
            neighbour = top in stems - {"lowenergy"} and file and Path(file).resolve().is_relative_to(folder)
            if neighbour or top.startswith("lowenergy_own_"):
                _brought[name] = folder


@contextmanager
def run_anew() -> Iterator[None]:
    """Within the context, files of networks are run again, as another process would; afterwards all is as before."""
    kept, brought, stamps = {name: sys.modules.get(name) for name in _brought}, dict(_brought), dict(_stamps)
    _forget(lambda module, of: True)
    try:
        yield
    finally:
        _forget(lambda module, of: True)
        sys.modules.update({name: module for name, module in kept.items() if module is not None})
        _brought.update(brought)
        _stamps.update(stamps)


def _forget(which: Callable[[str, Path], bool]) -> None:
    """Take out of sys.modules those modules that `which` selects from _brought, by name and folder."""
    for name in [name for name, of in _brought.items() if which(name, of)]:
        del _brought[name]
        sys.modules.pop(name, None)
