"""What stops a program, and the exit status that says so (0 is success)."""


class ProgramError(Exception):
    """Ends the program with one line on stderr and `exit_status`."""

    exit_status = 1


class InputError(ProgramError):
    """Bad input or configuration: the message names the file or key, and the mend."""

    exit_status = 2


class RunStopped(ProgramError):
    """The run stopped itself, for example at a loss that is not finite: the message names what was saved."""

    exit_status = 3


class Terminated(BaseException):
    """SIGTERM or Ctrl-C arrived: the message names the checkpoint to go on from.

    No Exception: it comes at any line, and whoever expects the exceptions of broken files must not take it for one.
    """

    exit_status = 4


class TimeLimit(ProgramError):
    """The time limit is reached: the message names the checkpoint to go on from."""

    exit_status = 5
