"""``python -m mtlsi`` is the command ``mtlsi``."""

from __future__ import annotations

import sys

from mtlsi.cli import main

sys.exit(main())
