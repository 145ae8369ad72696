"""Mistakes that a user, not a programmer, has to act on."""


class UserError(ValueError):
    """Bad input. One line that says where, what, what is allowed and what to do next.

    The commands print it without a traceback and exit with status 2.
    """


class CrossFieldError(ValueError):
    """Values that are fine alone and wrong together; ``key`` is the dotted key to point at."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem
