"""The errors that end a program, and the exit status of each (0 is success)."""


class ProgramError(Exception):
    """Ends the program with one line on stderr and `exit_status`."""

    exit_status = 1


class InputError(ProgramError):
    """Bad input or configuration: the message names the file or key, and the fix."""

    exit_status = 2


class RunStopped(ProgramError):
    """The run stopped itself, for example at a loss that is not finite: the message names what was saved."""

    exit_status = 3


class Terminated(BaseException):
    """SIGTERM or Ctrl-C arrived: the message names the checkpoint to resume from.

    Not an Exception: it may come at any line, and code that handles a broken file must not swallow it.
    """

    exit_status = 4


class TimeLimit(ProgramError):
    """The time limit is reached: the message names the checkpoint to resume from."""

    exit_status = 5


def one_line(error: Exception) -> str:
    """Return the beginning of an error's message, or its type, without line breaks."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
