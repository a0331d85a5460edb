"""Programs that are forked for the tests behave as those that a shell starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Started, run

_SHOW = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["COLOUR"], os.getppid(), os.umask(0), sys.stdin.read())
print("an error", file=sys.stderr)
sys.exit(3)
"""
_PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
_ENDINGS = {
    "nothing": "print('done')",
    "a text": "import sys; sys.exit('a text')",
    "an exception": "raise ValueError('wrong')",
    "at once": "import os; os._exit(9)",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "a handler": "import atexit; atexit.register(print, 'at exit')",
    "a killed process": "import os; os.kill(os.getpid(), 9)",
}


@pytest.mark.slow
def test_a_program_has_what_it_was_given(tmp_path: Path) -> None:
    """Arguments, folder, environment, streams and mask of new files; this process is its parent."""
    with (tmp_path / "input").open("w+") as file:
        file.write("the input")
        file.seek(0)
        done = run(["-c", _SHOW, "one", "two words"], cwd=tmp_path, env={"COLOUR": "red"}, stdin=file)
    before = os.umask(0)
    os.umask(before)
    given = f"['-c', 'one', 'two words'] {tmp_path} red {os.getpid()} {before} the input\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, given, "an error\n")


@pytest.mark.parametrize("ending", _ENDINGS)
def test_a_program_ends_as_in_an_interpreter(ending: str) -> None:
    """The same output, exit code and last line of errors."""
    code = _ENDINGS[ending]
    new = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    forked = run(["-c", code])
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert forked.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_is_ended_by_a_signal(number: signal.Signals) -> None:
    """As any process, in a session of its own if asked for."""
    with Started(["-c", "print('ready', flush=True); input()"], **_PIPES, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        process.send_signal(number)
        assert process.wait() == -number
