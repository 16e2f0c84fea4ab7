"""What the user can mend is a UserError: it says what, where and what to do, and is shown without traceback."""


class UserError(ValueError):
    """Bad params, data or files, or a training that cannot go on."""
