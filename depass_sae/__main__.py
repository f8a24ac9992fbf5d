"""The entry point of ``depass-sae``, which is ``python -m depass_sae``.

The command line takes a moment to import. Whoever presses Ctrl-C then gets no traceback, as later on.
"""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
