"""The command `karmalake`: thin, one module a group of commands; what it does is done by the stages.

An error ends it with a sentence, its code (`KL-...`) and the exit code of its class, as `errors.py` has them. Slow
libraries are imported inside the commands, so that `--help` is quick.
"""

import os
import signal
import sys
from pathlib import Path

from pipelines.errors import INTERRUPTED, ConfigurationError, UsageError, ending_of, one_line
from pipelines.ingest.memory import keep_freed_memory

_READER_GONE = 128 + signal.SIGPIPE
"""The exit code after `| head`, as shells have it."""
_SENTENCES = {
    "KL-INTERRUPTED": "interrupted; whatever was committed stands, and the same command goes on from there",
    "KL-DEFECT": "a defect of karmalake: report it with the lines above; whatever was committed stands",
}


def main() -> None:
    """Run the command line; the entry point of the package."""
    _open_standard_streams()
    try:
        _run()
    except SystemExit:
        raise
    except BrokenPipeError:
        _drop_output()
        sys.exit(_READER_GONE)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the exit code tells its class
        sys.exit(_tell(error))


def _open_standard_streams() -> None:
    """Open what the caller closed (`>&-`): the next file, one of the lake, would take the place of standard output."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - for the life of the process


def _run() -> None:
    keep_freed_memory()
    from pipelines.cli.output import quiet_libraries, show_traceback  # noqa: PLC0415 - starting is quick without it

    sys.excepthook = show_traceback  # typer takes over what stands here when it is imported
    from pipelines.cli.app import app  # noqa: PLC0415

    quiet_libraries()
    try:
        app()
    except SystemExit as end:
        sys.stdout.flush()  # here a full disk or a reader that is gone can still be told
        _ended(end)


def _ended(end: SystemExit) -> None:
    """Raise what typer or rich has turned into an exit code and said nothing of."""
    if isinstance(end.__context__, BrokenPipeError):
        raise end.__context__
    if end.code == INTERRUPTED.exit_code:
        raise KeyboardInterrupt from None
    if end.code == UsageError.exit_code and type(end.__context__).__name__ != "NoArgsIsHelpError":
        raise UsageError("the command line is not understood, as said above") from None
    raise end


def _tell(error: BaseException) -> int:
    """Print an error for a person; return the exit code of its class."""
    from pipelines.cli.output import fail, show_traceback  # noqa: PLC0415

    error = _translated(error)
    ending = ending_of(error)
    if ending.code == "KL-DEFECT":
        show_traceback(type(error), error, error.__traceback__)
    fail(_SENTENCES.get(ending.code) or _sentence(error), ending.code)
    _drop_output()
    return ending.exit_code


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError):  # a full disk, a folder without permission: the machine's affair
        return f"{error.filename or 'writing'}: {error.strerror or one_line(error)}"
    return str(error)


def _translated(error: BaseException) -> BaseException:
    """Return numba's error, where another user installed karmalake, as one of ours."""
    if isinstance(error, RuntimeError) and "cannot cache function" in str(error):
        return ConfigurationError("compiled loops cannot be kept: set NUMBA_CACHE_DIR to a folder of this user's own")
    return error


def _drop_output() -> None:
    """Let Python's own flush at the end succeed: it would change the exit code where standard output takes nothing."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
