"""What a command says of the error that ends it, and its exit code; without slow imports."""

from pipelines.boundary.private_files import message_of
from pipelines.errors import (
    INTERRUPTED,
    ConfigurationError,
    ExitStatus,
    exit_status_of,
)

_MESSAGES = {
    "KL-INTERRUPTED": "interrupted; what was committed stands, and the same command continues from there",
    "KL-DEFECT": "a bug in karmalake: report it with the traceback above; what was committed stands",
}
INTERRUPTED_MESSAGE = _MESSAGES[INTERRUPTED.code]


def describe_failure(error: BaseException) -> tuple[str, ExitStatus]:
    """Return the message of an error, and its codes. A `KL-DEFECT` needs its traceback beside the message."""
    error = _translated(error)
    status = exit_status_of(error)
    return _MESSAGES.get(status.code) or message_of(error), status


def _translated(error: BaseException) -> BaseException:
    """Return numba's error about its cache, which occurs where another user installed karmalake, as one of ours."""
    if isinstance(error, RuntimeError) and "cannot cache function" in str(error):
        return ConfigurationError(
            "numba cannot cache compiled functions: set NUMBA_CACHE_DIR to a folder that this user can write to"
        )
    return error
