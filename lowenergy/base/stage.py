"""How a stage starts and how it fails: one line if the user can fix it, a traceback if we have to."""

import os
import sys
from collections.abc import Callable

from lowenergy.base.errors import UserError, explained


def run(main: Callable[..., None]) -> None:
    """Call `main` with the command line's arguments. On an error that the user can fix, print one line and exit 1."""
    os.environ.setdefault("LOWENERGY_PROCESSES", "all")  # one for each GPU: a stage may take all of them
    try:
        main(*sys.argv[1:])
    except (UserError, OSError) as error:
        print(explained(error), file=sys.stderr)
        sys.exit(1)
