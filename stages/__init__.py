"""Thin entrypoints: `python -m stages.NAME` reads params and files, makes one call, writes files. See dvc.yaml."""

import sys
from types import TracebackType

from lowenergy.base.errors import UserError


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, UserError):
        print(error, file=sys.stderr)  # the message says it all; a traceback would bury it
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _show
