"""The command `karmalake`: thin, one module a group of commands; what it does is done by the stages.

A mistake of the user's ends with a sentence and exit code 2, a failed operation or check with 1. Slow libraries are
imported inside the commands, so that `--help` is quick.
"""

import sys

from pipelines.errors import KarmalakeError, one_line
from pipelines.ingest.memory import keep_freed_memory

_INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it; typer's too."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        _run()
    except KarmalakeError as error:
        _end(str(error), error.exit_code, error.page)
    except KeyboardInterrupt:
        _end("interrupted; whatever was committed stands, and the same command goes on from there", _INTERRUPTED)
    except OSError as error:  # a full disk, a folder without permission: the machine's affair, not a bug to trace
        _end(f"{error.filename or 'writing'}: {error.strerror or one_line(error)}", 1)
    except RuntimeError as error:  # numba's, where another user installed karmalake
        if "cannot cache function" not in str(error):
            raise
        _end("compiled loops cannot be kept: set NUMBA_CACHE_DIR to a folder that is this user's own", 1)


def _run() -> None:
    keep_freed_memory()
    from pipelines.cli.output import quiet_libraries, show_traceback  # noqa: PLC0415 - starting is quick without it

    sys.excepthook = show_traceback  # typer takes over what stands here when it is imported
    from pipelines.cli.app import app  # noqa: PLC0415

    quiet_libraries()
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer has caught the interrupt, and said nothing
            raise KeyboardInterrupt from None
        raise


def _end(sentence: str, exit_code: int, page: str | None = None) -> None:
    from pipelines.cli.output import fail  # noqa: PLC0415

    fail(sentence, page)
    sys.exit(exit_code)
