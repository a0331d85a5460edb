"""Run chaos: `python -m tests.chaos MINUTES --seed NUMBER`."""

import signal
import sys

from tests.chaos.run import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the services are stopped
    sys.exit(main())
