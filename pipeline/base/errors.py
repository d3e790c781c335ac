"""The one exception that reaches a user as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: its message names what is wrong, where, and what to do about it.

    The command lines print it without a traceback and exit with status 1.
    """
