"""The one exception that is shown to a user instead of a traceback, and how a program ends after it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches

#: Of a disk or its rights: what a user can mend, wherever a file is written or read.
OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class UserError(Exception):
    """A mistake that the user can mend.

    The command line prints the message as one line and leaves with exit code 2, so the message names the
    field, the value it had, and what to do instead.
    """


class NotWritten(OSError):  # noqa: N818
    """A file that a library could not write; it tells the reason in words alone."""


def one_line(error: object, most: int = 300) -> str:
    """What an error says, or a text of several lines, in one."""
    return " ".join(str(error).split())[:most]


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of a name that is not among the known ones: the one that is most like it, or else all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def exit_code(program: str, work: Callable[[], object], after_interrupt: str = "") -> int:
    """Do a program's work: 0, or 2 after a UserError or what a disk refuses, and 130 after Ctrl-C.

    Each is told in one line on standard error.
    """
    try:
        work()
    except UserError as error:
        # What it quotes of others' errors may have several lines.
        print(f"{program}: {one_line(error, most=10_000)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in OF_DISKS and not isinstance(error, NotWritten):
            raise
        told = f"{error.filename or 'a file'}: {error.strerror}" if error.strerror else one_line(error)
        print(f"{program}: {told}; free some space, or look whose it is", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{program}: {str(error) or 'interrupted'}{after_interrupt}", file=sys.stderr)
        return 130
    return 0
