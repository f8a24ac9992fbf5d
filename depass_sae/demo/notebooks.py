"""Run the notebooks of notebooks/ and keep their outputs (``make notebooks``).

A notebook runs from top to bottom in a kernel of its own: this Python, one thread, an empty folder, no IPython
settings. What says when, where and with what it ran is left out, so that twice on one machine gives the same file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import write_text

if TYPE_CHECKING:
    from nbformat import NotebookNode

ELSEWHERE = ("05_llama_scope.ipynb",)
"""Run only when named: its model's weights (16 GB, under a licence) are not everywhere."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, where ipywidgets are not installed
    "TRANSFORMERS_VERBOSITY": "error",
}
PACKAGE = Path(__file__).parents[2]


def run(path: Path, environment: Mapping[str, str] | None = None, timeout: int = 3600) -> NotebookNode:
    """The notebook with the outputs that it has now; its file is not touched.

    environment: set for its kernel beside this process's own. timeout: seconds for a cell. Raises nbclient's
    CellExecutionError where a cell fails, UserError where the notebook, nbclient or ipykernel are missing.
    """
    try:
        import nbformat
        from ipykernel.kernelspec import make_ipkernel_cmd
        from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
    except ImportError as error:
        raise UserError(f"running notebooks needs {error.name}: pip install nbclient nbformat ipykernel") from None

    class ThisPython(KernelSpecManager):
        """Whatever kernels are installed on the machine, the notebook runs in this Python."""

        def get_kernel_spec(self, kernel_name: str) -> Any:
            return KernelSpec(argv=make_ipkernel_cmd(executable=sys.executable), display_name=kernel_name)

    if not path.is_file():
        raise UserError(f"there is no notebook {path}")
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder, TemporaryDirectory() as settings:
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(
                kernel_name="python3",
                kernel_spec_manager=ThisPython(),
                transport="ipc" if os.name == "posix" else "tcp",
                connection_file=os.path.join(settings, "kernel.json"),
            ),
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            record_timing=False,
            shutdown_kernel="immediate",
            timeout=timeout,
        )
        paths = [str(PACKAGE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "IPYTHONDIR": settings}
        client.execute(env={**os.environ, **QUIET, **own, **(environment or {})}, cleanup_kc=True)
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from one run to the next; in place."""
    notebook.metadata = type(notebook)(METADATA)
    for cell in notebook.cells:
        cell.metadata = type(notebook)({key: value for key, value in cell.metadata.items() if key == "tags"})
    return notebook


def main() -> None:
    """About a minute on one core."""
    parser = argparse.ArgumentParser(description="Run notebooks in place.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all in notebooks/ that need only SmolLM2")
    parser.add_argument("--folder", type=Path, default=Path("notebooks"))
    arguments = parser.parse_args()
    there = sorted(path for path in arguments.folder.glob("*.ipynb") if path.name not in ELSEWHERE)
    for path in arguments.notebooks or there:
        try:
            write_text(path, text(run(path)))
        except UserError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
        print(path)


def text(notebook: NotebookNode) -> str:
    """As it stands in a file."""
    import nbformat

    return nbformat.writes(notebook).rstrip("\n") + "\n"


if __name__ == "__main__":
    main()
