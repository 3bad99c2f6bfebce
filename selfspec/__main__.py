"""`python -m selfspec`."""

import sys

from selfspec.cli import main

if __name__ == "__main__":
    sys.exit(main())
