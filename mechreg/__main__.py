"""``python -m mechreg`` is the command ``mechreg``."""

import sys

from mechreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
