"""Run by test_hub.py in a process of its own: loads dictionaries from repositories that a local hub hands out.

huggingface_hub reads HF_ENDPOINT when it is imported, so the server is up before that. The folder that is named holds
repositories as OWNER/NAME, and broken.json: the files whose first transfer ends halfway. asked.json there says what is
loaded, by its name: [arguments of load_saes, how the hub refuses it]. Prints one JSON object: hooks and activations, or
what was said; the parts that were asked for; and the same activations once the hub is gone.
"""

import json
import os
import sys
import time
from pathlib import Path

from tests.local_hub import serve


def attempt(**arguments):
    """What is loaded encodes X so: {hook: [pos, d_sae]}; or what is said."""
    from depass_sae.errors import UserError
    from depass_sae.saes import load_saes
    from tests.saes.formats.by_hand import activations

    try:
        return {str(hook): activations(sae).tolist() for hook, sae in load_saes(**arguments).items()}
    except UserError as error:
        return str(error)


def run(folder):
    asked = json.loads((folder / "asked.json").read_text())
    with serve() as hub:
        os.environ["HF_ENDPOINT"] = hub.address
        import huggingface_hub.constants

        huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 64  # else what broke off before 10 MiB begins anew
        time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between its retries
        for repository in (folder / "hub").glob("*/*"):
            files = {path.relative_to(repository).as_posix(): path for path in repository.rglob("*") if path.is_file()}
            hub.add("/".join(repository.parts[-2:]), {name: path.read_bytes() for name, path in files.items()})
        hub.broken |= set(json.loads((folder / "broken.json").read_text()))
        hub.refused |= {"owner/gated": (403, "GatedRepo"), "owner/failing": (500, "")}
        found = {name: attempt(**arguments) for name, arguments in asked.items()}
    again = {name: attempt(**asked[name]) for name, seen in found.items() if isinstance(seen, dict)}
    return {"found": found, "again": again, "ranges": hub.ranges, "not broken": sorted(hub.broken)}


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1])), sys.stdout)
