"""Put on PYTHONPATH by the pipeline tests: every traced stage writes down what it really used.

For a stage run as `python -m stages.NAME ...` a JSON file appears in $LOWENERGY_TRACE with the project modules it
imported, the files it opened below the working directory, and the parameters it read: of params.yaml by their places,
of a recipe as `data/recipes/ebm.train.json:train.lr`; and which module describes each of them.
"""

import atexit
import json
import os
import sys
from pathlib import Path


def trace(folder: Path) -> None:
    root = Path.cwd()
    opened, read, places, described = set(), set(), {}, {}

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

    from lowenergy import params
    from lowenergy.base import files
    from lowenergy.params import recipes

    def remember(section: BaseModel, at: str) -> None:
        places[id(section)] = (section, at)  # holding it keeps the id
        for name in section.model_fields_set | set(type(section).model_fields):
            value = section.__dict__.get(name)
            if isinstance(value, BaseModel):
                remember(value, f"{at}{name}.")

    def getattribute(section: BaseModel, name: str) -> object:
        value = BaseModel.__getattribute__(section, name)
        if id(section) in places and name in type(section).model_fields and not isinstance(value, BaseModel):
            leaf = places[id(section)][1] + name
            read.add(leaf)
            described[leaf] = os.path.relpath(sys.modules[type(section).__module__].__file__, root)
        return value

    def watched() -> None:
        params.Section.__getattribute__ = getattribute

    load, read_recipe = params.load, recipes.read

    def traced_load(*args: object, **kwargs: object) -> object:
        loaded = load(*args, **kwargs)
        remember(loaded, "")
        for name, teacher in loaded.teachers.items():
            remember(teacher.section, f"teachers.{name}.")
        for name, branch in loaded.branches.items():
            remember(branch.params, f"branches.{name}.")
        watched()
        return loaded

    def traced_recipe(name: str, recipe: str) -> object:
        teacher = read_recipe(name, recipe)
        remember(teacher.section, f"{recipes.FOLDER}/{name}.{recipe}.json:")
        watched()
        return teacher

    read_safetensors = files.read_safetensors

    def traced_read(path: object) -> object:  # opened in Rust, where no audit event tells of it
        opened.add(str(path))
        return read_safetensors(path)

    params.load, recipes.read, files.read_safetensors = traced_load, traced_recipe, traced_read
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
            "described": described,
        }
        (folder / f"{'-'.join([stage, *sys.argv[1:]])}.json").write_text(json.dumps(found))


if os.environ.get("LOWENERGY_TRACE") and sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    trace(Path(os.environ["LOWENERGY_TRACE"]))
