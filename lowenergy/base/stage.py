"""How a stage starts and how it fails: one line for what the user can mend, a traceback for what we must."""

import os
import sys
from collections.abc import Callable

from lowenergy.base.errors import UserError, explained


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's arguments; exit with 1 after one clear line where the user can help."""
    os.environ.setdefault("LOWENERGY_PROCESSES", "all")  # one for each GPU, which are ours to take
    try:
        main(*sys.argv[1:])
    except (UserError, OSError) as error:
        print(explained(error), file=sys.stderr)
        sys.exit(1)
