"""What the user can mend is a UserError: it says what, where and what to do, and is shown without traceback."""

import errno

ADVICE = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some of your quota and run again",
    errno.EACCES: "give yourself the permission and run again",
    errno.EPERM: "give yourself the permission and run again",
    errno.EROFS: "give a place that can be written",
}


class UserError(ValueError):
    """Bad params, data or files, or a training that cannot go on."""


def explained(error: UserError | OSError) -> str:
    """One line that names the file and what to do; what was there before is untouched, for files are written whole.

    Raises:
        OSError: the error again, if it is none that a user can mend.
    """
    if isinstance(error, UserError):
        return str(error)
    if error.errno not in ADVICE:
        raise error
    return f"{error.filename or 'a file'}: {error.strerror}; {ADVICE[error.errno]}. Nothing that was there is lost"
