"""The one exception that is shown to a user instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend.

    The command line prints the message as one line and leaves with exit code 2, so the message names the
    field, the value it had, and what to do instead.
    """
