"""Run chaos: `python -m tests.chaos MINUTES --seed NUMBER`."""

import sys

from tests.chaos.run import main

if __name__ == "__main__":
    sys.exit(main())
