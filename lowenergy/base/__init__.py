"""What everything else builds on: errors, files, the look of figures."""

from lowenergy.base.errors import UserError
from lowenergy.base.files import FileError

__all__ = ["FileError", "UserError"]
