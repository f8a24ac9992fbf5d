"""The entry point of ``depass-sae``, which is ``python -m depass_sae``.

The command line takes a moment to import. Whoever presses Ctrl-C then gets no traceback, as later on.

Python looks for garbage whenever objects become more. While libraries are imported and a model is loaded, half a
million come, nearly all to stay, and looking through them again and again takes a quarter of the time: so it waits.
"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    gc.disable()  # until a model is loaded: `Loading.load`
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
