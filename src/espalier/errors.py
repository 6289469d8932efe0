"""The one error that a user is meant to read.

It says what was found, what was wanted and what to do. The command line prints it without a traceback
and exits with 2; in Python it is an ordinary ValueError.
"""


class UserError(ValueError):
    """The user's input is wrong (a file, a key, a value); the message carries the remedy."""


class Interrupted(Exception):
    """A signal ended the work in good order; the message says what is kept and how to go on. Exit code 3."""


class Notice(UserWarning):
    """Something that the user should know though the work goes on; the command line shows it as one plain line."""
