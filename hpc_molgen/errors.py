"""Errors that a user meets, each with the exit code that it ends the command with."""

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_GATE_FAILED = 3
EXIT_INTERRUPTED = 130


class HpcMolgenError(Exception):
    """Base of all errors that are shown as one message, without a traceback."""

    exit_code = EXIT_BUG


class InputError(HpcMolgenError):
    """Something the user gave is wrong; the message says what, where and what to do."""

    exit_code = EXIT_BAD_INPUT


class UnsupportedForce(InputError):
    """A force, or an option of one, that the batched engine does not know; the message names it and OpenMM takes over."""


class EnvironmentProblem(HpcMolgenError):
    """The machine lacks something (MPI, space, a writable folder) and the message says what."""

    exit_code = EXIT_BAD_INPUT


class Interrupted(HpcMolgenError):
    """Ctrl-C or SIGTERM arrived; what was finished is kept and the next run goes on."""

    exit_code = EXIT_INTERRUPTED
