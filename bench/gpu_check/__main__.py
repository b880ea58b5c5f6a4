"""``python -m bench.gpu_check`` and ``python bench/gpu_check``."""

import sys
from pathlib import Path

if not __package__:
    # Run as a folder: that folder is on the path then, and not the one it is a package of.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from bench.gpu_check.cli import main

if __name__ == "__main__":
    sys.exit(main())
