"""The exceptions that reach a user as a single line instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: its message names what is wrong, where, and what to do about it.

    The command lines print it without a traceback and exit with status 1.
    """


class NotFetched(UserError):
    """Weights that are not on this machine, while nobody can be asked for them: what needs none can be done."""


class MachineError(UserError):
    """The fault of the machine, the environment or a model, never of a shape: it stops the run and sets none aside."""
