"""The one exception that a user, not a programmer, has to act on."""


class UserError(ValueError):
    """Bad input. One line that says where, what, what is allowed and what to do next.

    The commands print it without a traceback and exit with status 2.
    """
