"The repository keeps its own rules: notebooks clean and exported, rooms in order, parameters and config in step."
import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
LIBRARY = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.name)]
EXPERIMENTS = [path for path in NOTEBOOKS if path not in LIBRARY and path.stem != "index"]
BIN = Path(sys.executable).parent
name = lambda path: path.stem


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def exported(path):
    return [source(cell) for cell in cells(path) if source(cell).startswith("#| export")]


def parameters_cell(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged `parameters`"
    return source(tagged[0])


def test_clean_and_exported(tmp_path):
    "Cleaning and exporting change nothing: what is committed is what the notebooks say."
    for part in ("nbs", "mixsupcon"):
        shutil.copytree(ROOT/part, tmp_path/part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT/part, tmp_path/part)
    for command in (["nbdev_clean"], ["nbdev_export"]):
        done = subprocess.run([BIN/command[0]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for part in ("nbs", "mixsupcon"):
        ours, theirs = ({p.name: p.read_bytes() for p in (root/part).iterdir() if p.suffix in (".ipynb", ".py")} for root in (ROOT, tmp_path))
        assert ours.keys() == theirs.keys(), f"{part}: {sorted(ours.keys() ^ theirs.keys())} (a module without its notebook, or not exported)"
        changed = [file for file in ours if ours[file] != theirs[file]]
        assert not changed, f"{changed}: run nbdev_clean and nbdev_export, then commit"


def test_every_module_imports_alone():
    "Each module in a process that has loaded no other of ours: a forgotten import is found here."
    code = (
        "import importlib, os, sys\n"
        "import torch, torchvision, sklearn.manifold, sklearn.datasets, pandas, seaborn, scipy.special, IPython, safetensors.torch\n"
        "for name in sys.argv[1:]:\n"
        "    if not (child := os.fork()):\n"
        "        assert not [m for m in sys.modules if m.startswith('mixsupcon')]\n"
        "        importlib.import_module(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]: sys.exit(f'{name} does not import alone')\n")
    modules = [f"mixsupcon.{path.stem}" for path in (ROOT/"mixsupcon").glob("*.py") if not path.stem.startswith("_")]
    assert len(modules) == len(LIBRARY)
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_notebook(path):
    "A title and a promise; lower rooms only; cells that a reader holds in the head; a docstring for everything public."
    assert re.match(r"# .+\n\n> .+", source(cells(path, "markdown")[0])), "opens with a title and a promise"
    rooms = {room.stem[3:]: room.stem[:2] for room in LIBRARY}
    for text in exported(path):
        lines = [line for line in text.splitlines()[1:] if line.strip()]
        assert len(lines) <= 30, f"{len(lines)} lines in a cell: {lines[0]}"
        assert "import *" not in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixsupcon."):
                assert rooms[node.module.split(".")[1]] < path.stem[:2], f"imports {node.module}, which is not below it"
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiment_notebook(path):
    "Defines nothing, is short, is not run by nbdev_test, and papermill finds its parameters."
    assert "- skip_exec: true" in source(cells(path, "markdown")[0])
    assert len(cells(path)) <= 12
    for cell in cells(path):
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.walk(ast.parse(source(cell)))), "an experiment defines nothing"
        assert "#|" not in source(cell), "papermill ignores nbdev's directives"
    text = parameters_cell(path)
    assert text.startswith("# Parameters\n")
    for line in text.splitlines()[1:]:
        assert re.match(r"\w+: (str|int|float) = \S.*  # \S", line), f"a parameter has a type, a default and a comment: {line}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_any_notebook(path):
    "No outputs, no personal kernel, no private path."
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert not re.search(r"/home/|/root/|/Users/", path.read_text())
    for cell in notebook["cells"]:
        text = source(cell)
        assert "#| export" not in text or text.startswith("#| export"), f"a directive below other lines is not seen: {text[:60]}"


def test_parameters_are_the_config():
    "`run_experiment` names every field, in no other type, and its defaults are the package's."
    from mixsupcon.config import Config, configure
    given = {node.target.id: (node.annotation.id, ast.literal_eval(node.value)) for node in ast.parse(parameters_cell(ROOT/"nbs"/"run_experiment.ipynb")).body}
    about_the_session = dict(repeats=("int", 1), wait=("float", 0))   # not of the run
    assert {k: given.pop(k) for k in about_the_session} == about_the_session
    assert {k: kind for k, (kind, _) in given.items()} == {f.name: f.type.__name__ for f in fields(Config)}
    set_ = {k: value for k, (_, value) in given.items() if value is not None}
    assert set_ == {k: getattr(configure(), k) for k in set_}


def test_words_in_the_comments():
    "What a parameter's comment offers is what the package knows."
    from mixsupcon import data, losses, methods, mixers, models
    from mixsupcon.config import PRESETS, PROBES, WORDS
    path = ROOT/"nbs"/"run_experiment.ipynb"
    lines = dict(line.split(":", 1) for line in parameters_cell(path).splitlines()[1:])
    above = next(source(cell) for cell in cells(path, "markdown") if source(cell).startswith("## Parameters"))
    lines |= dict(method=above, preset=above)
    tables = dict(method=methods.METHODS, dataset=data.DATASETS, arch=models.BACKBONES, mixer=mixers.MIXERS, partner=mixers.PARTNERS, preset=PRESETS,
                  head=models.HEADS, probe=PROBES) | WORDS
    for parameter, table in tables.items():
        if parameter != "probe_schedule":
            assert all(re.search(rf"\b{word}\b", lines[parameter]) for word in table), f"{parameter}: the comment leaves out one of {list(table)}"
    assert set(WORDS["label_sim"]) == {*losses.SIMILARITIES, "instance"}


def test_the_readme_runs():
    "Its Python, as written, top to bottom; and it names no file that is not there."
    text = (ROOT/"README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    done = subprocess.run([sys.executable, "-c", "\n".join(blocks) + "\nassert features.grad.abs().sum() > 0 and loss.isfinite()"], capture_output=True, text=True)
    assert len(blocks) >= 2 and done.returncode == 0, done.stderr
    links = re.findall(r"\]\((nbs/[^)]*)\)", text)
    assert links and all((ROOT/link).exists() for link in links)
    assert {path.stem for path in NOTEBOOKS} <= {Path(link).stem for link in links}, "the map leaves out a notebook"


@pytest.mark.parametrize("studies, rows", [(["switches"], "all"), (["imix", "imix_mixers", "imix_views", "imix_classes", "unmix", "mixsiam"], 15)])
def test_the_readme_says_what_was_measured(studies, rows):
    "Its tables are the committed report's, cell for cell."
    cells = lambda line: [cell.strip() for cell in line.strip().strip("|").split("|")]
    tables = ROOT/"outputs"/"report"/"small"/"tables"
    lines = [line for study in studies for line in (tables/f"{study}.md").read_text().splitlines() if line.startswith("| digits")]
    measured = {cells(line)[1]: cells(line) for line in lines}
    shown = [cells(line) for line in (ROOT/"README.md").read_text().splitlines() if line.startswith("| ") and cells(line)[0] in measured and "±" in line]
    assert len(shown) == (len(measured) if rows == "all" else rows) > 10, [row[0] for row in shown]
    for row, linear, difference, p in shown:
        assert [linear, difference, p] == measured[row][2:5], row


def test_nothing_is_unpickled_or_shelled():
    "The one pickle that is read goes through an unpickler that can only build arrays."
    risky = re.compile(r"torch\.load\((?!.*weights_only=True)|pickle\.loads?\(|allow_pickle|yaml\.load|(?<!\.)\beval\(|(?<!\.)\bexec\(|shell=True|extractall|os\.system")
    for path in (ROOT/"mixsupcon").glob("*.py"):
        assert not risky.findall(path.read_text()), path.name
