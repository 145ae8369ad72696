"""Errors that end a command: a user's mistake, or a request to stop."""

PREEMPTED_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, start me again."""


class UserError(ValueError):
    """Bad input. One line that says where, what, what is allowed and what to do next.

    The commands print it without a traceback and exit with status 2.
    """


class AgreedError(UserError):
    """A user's mistake that every rank raises, in the same words: the main rank reports it for all."""


class NotFiniteError(AgreedError):
    """Weights, images or features that hold NaN or infinity. Training goes on without the snapshot that found them."""


class CrossFieldError(ValueError):
    """Values that are fine alone and wrong together; ``key`` is the dotted key to point at."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} {problem}")
        self.key = key
        self.problem = problem


class Preempted(Exception):  # noqa: N818  # no error
    """Asked to stop, and everything is saved; the text says what and where. The exit status is PREEMPTED_STATUS."""


def first_line(error: BaseException) -> str:
    """What any error says, in one line; its kind, where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
