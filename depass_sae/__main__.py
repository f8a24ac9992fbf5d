"""``python -m depass_sae`` is ``depass-sae``."""

from .cli import main

main()
