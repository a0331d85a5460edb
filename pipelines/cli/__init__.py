"""The command `karmalake`: thin, one module a group of commands; what it does is done by the stages.

A mistake of the user's ends with a sentence and exit code 2, a failed operation or check with 1. Slow libraries are
imported inside the commands, so that `--help` is quick.
"""

import sys

from pipelines.errors import KarmalakeError


def main() -> None:
    """Run the command line; the entry point of the package."""
    from pipelines.cli.app import app  # noqa: PLC0415 - starting is quick without it
    from pipelines.cli.output import fail, quiet_libraries  # noqa: PLC0415

    quiet_libraries()
    try:
        app()
    except KarmalakeError as error:
        fail(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted; whatever was committed stands, and the same command goes on from there")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
