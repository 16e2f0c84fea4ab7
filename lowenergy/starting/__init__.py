"""From a folder of images to a params.yaml that suits them and the machine: look, choose, measure, write."""

from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lowenergy import params, profiles
from lowenergy.base.errors import UserError, one_line
from lowenergy.starting import choose, look, measure


def start(
    place: str, budget: float, *, size: int | None, root: str, arguments: Sequence[str] = (), force: bool
) -> None:
    """Write params.yaml for these images, and say what was chosen, why, and what each stage will take.

    Args:
        place: see look.images.
        budget: seconds for the whole pipeline.
        size: side of the images in pixels; None to choose one.
        arguments: for a data set, such as split=letters.
        force: overwrite the user's own values in params.yaml.
    Raises:
        UserError: params.yaml has the user's own values, the size or arguments are wrong, the images cannot be used,
            or the budget is too small; nothing is written.
    """
    command = f"lowenergy start {place}"
    if size is not None and not 8 <= size <= 512:
        raise UserError(f"--size {size}: give 8 to 512 pixels")
    if not force:
        profiles.check_free(command)
    images, machine = look.images(place, root, _parsed(arguments)), look.machine()
    print(*images.lines(), machine.line(), sep="\n", flush=True)
    print("measuring a few steps of each network", flush=True)
    plan = choose.plan(
        images, machine, budget, lambda specs: measure.measure(specs, machine.threads, machine.jobs), size
    )
    whole = profiles.over(plan.values, profiles.composed(profiles.DEFAULT))
    params.check(whole)
    profiles.write(whole, command, force=True)
    print(*plan.lines(images), sep="\n")


def _parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """Parse name=value arguments, whose values are YAML.

    Raises:
        UserError: one is not of the form name=value, or not valid YAML.
    """
    pairs = [text.partition("=") for text in arguments]
    if wrong := next((text for text, (name, sign, _) in zip(arguments, pairs, strict=True) if not (name and sign)), ""):
        raise UserError(f"--arguments {wrong}: give name=value, such as split=letters")
    try:
        return {name: YAML(typ="safe").load(value) for name, _, value in pairs}
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--arguments {' '.join(arguments)}: not valid YAML: {one_line(error)}") from None
