"""The command `karmalake`: options and output, one module per group of commands; the stages do the work.

An error ends it with a message, its code (`KL-...`) and the exit code of its class, all defined in `errors.py`. Slow
libraries are imported inside the commands, so that `--help` is fast.
"""

import atexit
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pipelines.cli.failures import describe_failure
from pipelines.cli.numba_cache import choose_numba_cache
from pipelines.errors import DEFECT, INTERRUPTED, UsageError
from pipelines.ingest.malloc import tune_malloc

_BROKEN_PIPE = 128 + signal.SIGPIPE
"""The exit code after `| head`, like that of shells."""
_EXPLAINED = {"NoArgsIsHelpError", "Exit"}
"""The types of what ends a command with the exit code of a usage error after a text of its own: help, or an error."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    _open_standard_streams()
    status = _ExitStatus()
    atexit.register(status.leave)  # registered first, called last
    try:
        _run()
    except SystemExit as end:
        status.code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except BrokenPipeError:
        _drop_output()
        status.end(_BROKEN_PIPE)
    except BaseException as error:  # noqa: BLE001 - every error has an exit code
        status.end(_report(error))


@dataclass(slots=True)
class _ExitStatus:
    """The exit code, with which the process ends once threads and libraries have cleaned up.

    The interpreter would then free every object of every library: a third of a second of the processor.
    """

    code: int = 0

    def end(self, code: int) -> NoReturn:
        self.code = code
        sys.exit(code)

    def leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(self.code)


def _open_standard_streams() -> None:
    """Open the streams that the caller closed (`>&-`): otherwise the next file opened, of the lake, becomes stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open until the process ends


def _run() -> None:
    tune_malloc()
    choose_numba_cache()
    from pipelines.cli.output import quiet_libraries, show_traceback  # noqa: PLC0415 - slow to import

    sys.excepthook = show_traceback  # typer wraps the current hook when it is imported
    from pipelines.cli.app import app  # noqa: PLC0415

    quiet_libraries()
    try:
        app()
    except SystemExit as end:
        sys.stdout.flush()  # a full disk or a closed pipe can still be reported here
        _raise_cause(end)


def _raise_cause(end: SystemExit) -> None:
    """Raise the error that typer or rich has turned into a silent exit code."""
    if isinstance(end.__context__, BrokenPipeError):
        raise end.__context__
    if end.code == INTERRUPTED.exit_code:
        raise KeyboardInterrupt from None
    if end.code == UsageError.exit_code and type(end.__context__).__name__ not in _EXPLAINED:
        raise UsageError("the command line is invalid: see above") from None
    raise end


def _report(error: BaseException) -> int:
    """Print an error; return the exit code of its class."""
    from pipelines.cli.output import print_error, show_traceback  # noqa: PLC0415

    message, status = describe_failure(error)
    if status == DEFECT:
        show_traceback(type(error), error, error.__traceback__)
    print_error(message, status.code)
    _drop_output()
    return status.exit_code


def _drop_output() -> None:
    """Let Python's final flush succeed: otherwise a closed standard output would change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
