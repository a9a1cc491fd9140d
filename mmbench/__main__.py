"""``python -m mmbench``."""

import sys

from mmbench.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
