"""The SAEs for SmolLM2 that come with the package, in sae-lens's format."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def shipped_saes() -> dict[int, Path]:
    """Layer → directory of the SAEs that come with the package, in sae-lens's format, layers ascending."""
    found = {
        int(folder.name.removeprefix("layer_")): folder
        for folder in _HERE.glob("layer_*")
        if folder.name.removeprefix("layer_").isdigit() and (folder / "cfg.json").is_file()
    }
    return dict(sorted(found.items()))
