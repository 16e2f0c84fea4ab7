"""Models as C: one source file without dependencies, with its memory planned in advance."""

from lowenergy.runtimes.c.directory import export, planned
from lowenergy.runtimes.c.memory import NoPlanError
from lowenergy.runtimes.c.page import export_page

__all__ = ["NoPlanError", "export", "export_page", "planned"]
