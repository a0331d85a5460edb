"""The command `karmalake`, also as `python -m karmalake`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
