"""``python -m mmsa_decalign`` is the same as ``mmsa``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
