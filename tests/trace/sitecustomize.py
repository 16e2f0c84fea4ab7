"""Put on PYTHONPATH by the pipeline tests: every traced stage writes down what it really used.

For a stage run as `python -m stages.NAME ...` a JSON file appears in $LOWENERGY_TRACE with the project modules it
imported, the files it opened below the working directory, and the parameters it read.
"""

import atexit
import json
import os
import sys
from pathlib import Path


def trace(folder: Path) -> None:
    root = Path.cwd()
    opened, read, places = set(), set(), {}

    def audit(event: str, args: tuple) -> None:
        if (
            event == "open"
            and isinstance(args[0], str)
            and isinstance(args[1], str | None)
            and "w" not in (args[1] or "")
        ):
            path = Path(os.path.abspath(args[0]))
            if path.is_relative_to(root):
                opened.add(str(path.relative_to(root)))

    sys.path.insert(0, str(root))
    from pydantic import BaseModel

    from lowenergy.base import files, params

    def remember(section: BaseModel, at: str) -> None:
        places[id(section)] = (section, at)  # holding it keeps the id
        for name in type(section).model_fields:
            value = BaseModel.__getattribute__(section, name)
            if isinstance(value, BaseModel):
                remember(value, f"{at}{name}.")

    def getattribute(section: BaseModel, name: str) -> object:
        value = BaseModel.__getattribute__(section, name)
        if id(section) in places and name in type(section).model_fields and not isinstance(value, BaseModel):
            read.add(places[id(section)][1] + name)
        return value

    load = params.load

    def traced_load(*args: object, **kwargs: object) -> object:
        loaded = load(*args, **kwargs)
        remember(loaded, "")
        params.Section.__getattribute__ = getattribute
        return loaded

    read_safetensors = files.read_safetensors

    def traced_read(path: object) -> object:  # opened in Rust, where no audit event tells of it
        opened.add(str(path))
        return read_safetensors(path)

    params.load, files.read_safetensors = traced_load, traced_read
    sys.addaudithook(audit)

    @atexit.register
    def write() -> None:
        stage = sys.modules["__main__"].__spec__.name
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        modules = [os.path.relpath(file, root) for file in files if file and Path(file).is_relative_to(root)]
        found = {
            "stage": stage.removeprefix("stages."),
            "args": sys.argv[1:],
            "modules": sorted(m for m in modules if m.split(os.sep)[0] in ("lowenergy", "stages")),
            "opened": sorted(opened),
            "read": sorted(read),
        }
        (folder / f"{'-'.join([stage, *sys.argv[1:]])}.json").write_text(json.dumps(found))


if os.environ.get("LOWENERGY_TRACE") and sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    trace(Path(os.environ["LOWENERGY_TRACE"]))
