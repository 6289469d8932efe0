"""The two errors that a user is meant to read.

The command line prints them without a traceback. A `UserError` says what was found, what was wanted and what to do
(exit code 2); in Python it is an ordinary ValueError. A `Stopped` says what is kept and how to go on (exit code 3).
"""


class UserError(ValueError):
    """The user's input is wrong (a file, a key, a value); the message carries the remedy."""


class Stopped(Exception):
    """A signal ended the work in good order; the message says what is kept and how to go on. Exit code 3.

    Attributes:
        step: the step whose checkpoint is written, where there is one.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class Notice(UserWarning):
    """Something that the user should know though the work goes on; the command line shows it as one plain line."""
