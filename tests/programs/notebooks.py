"""Runs the library's notebooks, two at a time, and keeps their outputs without counts, timings and standard error.

    python tests/programs/notebooks.py                               # all, index included
    python tests/programs/notebooks.py nbs/core/01_mixers.ipynb      # some
"""
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")   # read by the kernels

import nbformat   # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SHOWN = [*sorted((ROOT/"nbs").glob("*/[0-9][0-9]_*.ipynb")), ROOT/"nbs"/"index.ipynb"]
KERNEL = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}


def execute(path):
    "The notebook with fresh, cleaned outputs; its first error is raised."
    from nbclient import NotebookClient   # not needed by the tests, which only read
    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    return clean(notebook)


def clean(notebook):
    "The notebook without what changes from one execution to the next."
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.metadata.pop("execution", None)
            cell.outputs = joined(cell.outputs)
    return notebook


def tidy(text):
    "Text without speed and remaining time of training, and without paths of temporary folders."
    return re.sub(r"/tmp/\w+/", "", re.sub(r"( +[\d,]+ views/s)? +[\d:]+ left", "", text))


def joined(outputs):
    "Outputs without counts and metadata; texts printed one after the other are one."
    kept = []
    for output in (output for output in outputs if output.get("name") != "stderr"):
        if "execution_count" in output:
            output.execution_count = None
        if output.output_type == "stream":
            output.text = tidy(output.text)
        elif "metadata" in output:
            output.metadata = {}
            output.data = {kind: tidy(v) if kind.startswith("text/") else v for kind, v in output.data.items()}
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def texts(notebook):
    "What the cells print, and show as text after it: cell's number -> text."
    shown = {}
    for i, cell in enumerate(notebook.cells):
        parts = []
        for output in joined(sorted(cell.get("outputs", []), key=lambda output: output.output_type, reverse=True)):
            text = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")
            parts.append("".join(text))
        if parts:
            shown[i] = "\n".join(parts)
    return shown


def store(path):
    "Run a notebook and write it with its outputs; a line that says how it went."
    try:
        notebook = execute(path)
    except Exception as error:
        return f"FAILED {path.name}: {str(error)[-1500:]}"
    nbformat.write(notebook, path)
    return f"ok {path.name} ({path.stat().st_size//1000} kB)"


if __name__ == "__main__":
    chosen = [Path(word).resolve() for word in sys.argv[1:]] or SHOWN
    with ThreadPoolExecutor(2) as pool:
        lines = list(pool.map(store, chosen))
    print("\n".join(lines))
    sys.exit(any(line.startswith("FAILED") for line in lines))
