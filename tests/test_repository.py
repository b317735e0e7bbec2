"The repository keeps its own rules: notebooks clean and exported, rooms in order, documents in step."
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
from conftest import COSTLY

ROOT = Path(__file__).parents[1]
ROOMS = ("core", "papers", "lab", "report")   # a room imports from itself and from those before it
LIBRARY = [path for room in ROOMS for path in sorted((ROOT/"nbs"/room).glob("*.ipynb"))]
TOP = sorted((ROOT/"nbs").glob("*.ipynb"))
EXPERIMENTS = [path for path in TOP if path.stem != "index"]
NOTEBOOKS = LIBRARY + TOP
MODULES = sorted(path for path in (ROOT/"mixsupcon").rglob("*.py") if not path.stem.startswith("_"))
BIN = Path(sys.executable).parent
NETWORKS = "models", "mix_block", "clusters", "block_parts"   # modules that are made of torch
LIGHT = [f"mixsupcon.core.{path.stem}" for path in MODULES
         if path.parent.name == "core" and path.stem not in NETWORKS]
HEAVY = "torch", "torchvision", "numpy", "pandas", "scipy", "sklearn", "matplotlib"


def name(path):
    return path.stem


def source(cell):
    return "".join(cell["source"])


@cache
def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def exported(path):
    return [source(cell) for cell in cells(path) if source(cell).startswith("#| export")]


def size(text):
    "The lines of a cell without its directive and blank ones."
    return len([line for line in text.splitlines()[1:] if line.strip()])


parsed = cache(ast.parse)


@cache
def nodes_of(text):
    "All nodes of a program."
    return [*ast.walk(parsed(text))]


def defined(text):
    "The functions and classes that a cell defines."
    return [node for node in parsed(text).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def public_functions(path):
    "The functions of a module that others may call."
    return [node for node in parsed(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def parameters_cell(path):
    tagged = [cell for cell in cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, f"{path.name} has {len(tagged)} cells tagged `parameters`"
    return source(tagged[0])


# ---- notebooks and modules

def files(root, part):
    "Path -> bytes of the notebooks and modules of a part."
    paths = [path for path in (root/part).rglob("*") if path.suffix in (".ipynb", ".py")]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths if "checkpoints" not in str(path)}


@pytest.mark.slow
def test_clean_and_exported(tmp_path):
    "Cleaning and exporting change nothing: what is committed is what the notebooks say."
    for part in ("nbs", "mixsupcon"):
        shutil.copytree(ROOT/part, tmp_path/part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT/part, tmp_path/part)
    for command in ("nbdev_clean", "nbdev_export"):
        done = subprocess.run([BIN/command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for part in ("nbs", "mixsupcon"):
        ours, theirs = files(ROOT, part), files(tmp_path, part)
        orphans = sorted(ours.keys() ^ theirs.keys())
        assert not orphans, f"{orphans}: a module without its notebook, or not exported"
        changed = [file for file in ours if ours[file] != theirs[file]]
        assert not changed, f"{changed}: run nbdev_clean and nbdev_export, then commit"


def test_every_module_has_its_notebook():
    "Nothing is left of a notebook that went away."
    targets = {path: re.findall(r"#\| default_exp ([\w.]+)", path.read_text()) for path in LIBRARY}
    assert all(len(target) == 1 for target in targets.values()), targets
    expected = {f"{path.parent.name}.{path.stem[3:]}" for path in LIBRARY}
    assert expected == {target[0] for target in targets.values()}
    assert expected == {".".join(path.relative_to(ROOT/"mixsupcon").with_suffix("").parts) for path in MODULES}


@pytest.mark.slow
def test_every_module_imports_alone():
    "Each module in a process that has loaded no other of ours: a forgotten import is found here."
    code = (
        "import importlib, os, sys\n"
        "import torch, torchvision, sklearn.manifold, sklearn.datasets, pandas, seaborn, scipy.special, IPython\n"
        "for name in sys.argv[1:]:\n"
        "    if not (child := os.fork()):\n"
        "        assert not [m for m in sys.modules if m.startswith('mixsupcon')]\n"
        "        importlib.import_module(name)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]: sys.exit(f'{name} does not import alone')\n")
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES]
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_core_is_light():
    "Importing the package and its core loads none of the large libraries: they come where they are used."
    code = (f"import importlib, sys\nfor name in ['mixsupcon', *{LIGHT}]: importlib.import_module(name)\n"
            f"print(*[m for m in {HEAVY} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stderr or done.stdout


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_a_library_notebook_opens_with_a_promise(path):
    assert re.match(r"# .+\n\n> .+", source(cells(path, "markdown")[0]))


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_imports_go_to_lower_rooms(path):
    "Of its own room only notebooks with a lower number, of others only rooms before it; always by absolute names."
    numbers = {(other.parent.name, other.stem[3:]): other.stem[:2] for other in LIBRARY}
    for text in exported(path):
        assert "import *" not in text
        for node in nodes_of(text):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mixsupcon"):
                continue
            _, room, *module = node.module.split(".")
            if room == path.parent.name and module:
                assert numbers[room, module[0]] < path.stem[:2], f"imports {node.module}, which is not below it"
            assert ROOMS.index(room) <= ROOMS.index(path.parent.name), f"imports {node.module}, a later room"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_cells_fit_in_the_head(path):
    "30 lines at most, 45 for one class."
    for text in exported(path):
        one_class = any(isinstance(node, ast.ClassDef) for node in defined(text))
        assert size(text) <= (45 if one_class else 30), f"{size(text)} lines in a cell: {text[:200]}"


def test_most_cells_are_small():
    "Half of all exported cells have at most 12 lines."
    assert statistics.median(size(text) for path in LIBRARY for text in exported(path)) <= 12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_lines_are_short(path):
    "At most 120 characters, in parameters cells with their comments 160."
    for cell in cells(path):
        limit = 160 if "parameters" in cell["metadata"].get("tags", []) else 120
        long = [line for line in source(cell).splitlines() if len(line) > limit]
        assert not long, long


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_everything_public_has_a_docstring(path):
    for text in exported(path):
        for node in defined(text):
            assert node.name.startswith("_") or ast.get_docstring(node), f"{node.name} has no docstring"


def test_definitions_are_shown_at_once():
    "At least 70 % are named in the next two cells that are not exported."
    shown, all_ = [], []
    for path in LIBRARY:
        code = [source(cell) for cell in cells(path)]
        for i, text in enumerate(code):
            later = [other for other in code[i + 1:] if not other.startswith("#|")][:2]
            names = [node.name for node in defined(text)] if text.startswith("#| export") else []
            all_ += names
            shown += [each for each in names if any(re.search(rf"\b{each}\b", other) for other in later)]
    assert len(shown) >= .7*len(all_), f"{len(shown)} of {len(all_)}: {sorted({*all_} - {*shown})}"


def test_public_functions_have_type_hints():
    "At least nine in ten say what they return, and name the type of most arguments."
    functions = [node for path in MODULES for node in public_functions(path)]
    arguments = [arg for node in functions for arg in node.args.args]
    hinted = [arg for arg in arguments if arg.annotation]
    assert len(hinted) >= .8*len(arguments), f"{len(hinted)} of {len(arguments)}"
    returns = [node for node in functions if node.returns]
    assert len(returns) >= .9*len(functions), [node.name for node in functions if not node.returns]


def test_plain_names():
    "No function, class or argument is called by a word that says nothing of what it is."
    vague = {"told", "said", "found", "kept", "there", "answer", "answers", "asked", "utils", "helpers", "misc"}
    for path in MODULES:
        for node in nodes_of(path.read_text()):
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
            names += [arg.arg for arg in node.args.args] if isinstance(node, ast.FunctionDef) else []
            assert not vague.intersection(names), f"{path.name}: {names}"


def test_report_and_lab_know_no_paper():
    "A paper is data: its name stands in no module of lab, report or core but METHODS and the docstrings."
    papers = [path.stem[3:] for path in LIBRARY if path.parent.name == "papers"]
    for path in MODULES:
        if path.parent.name in ("lab", "report"):
            for node in nodes_of(path.read_text()):
                known = isinstance(node, ast.Constant) and node.value in {*papers} - {"mixsupcon", "digits"}
                assert not known, f"{path.name} names {node.value}"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_an_experiment_notebook_defines_nothing(path):
    "And is short, is not run by nbdev_test, and papermill finds its parameters."
    assert "- skip_exec: true" in source(cells(path, "markdown")[0])
    assert len(cells(path)) <= 12
    for cell in cells(path):
        nodes = ast.walk(ast.parse(source(cell)))
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in nodes)
        assert "#|" not in source(cell), "papermill ignores nbdev's directives"
        assert not cell["outputs"], "an executed experiment belongs to outputs/"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_a_parameter_has_a_type_a_default_and_a_comment(path):
    text = parameters_cell(path)
    assert text.startswith("# Parameters\n")
    for line in text.splitlines()[1:]:
        assert not line or re.match(r"\w+: (str|int|float) = \S.*  # \S|# \S", line), line


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_any_notebook(path):
    "No personal kernel, no private path, no directive that nbdev would not see."
    text = path.read_text()
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"
    assert not re.search(r"/home/|/root/|/Users/", re.sub(r'"image/png": "[^"]*"', "", text))
    for cell in cells(path):
        first, *rest = source(cell).split("#| export")
        assert not rest or not first, f"a directive below other lines is not seen: {source(cell)[:60]}"
        assert cell["execution_count"] is None


# ---- parameters

def test_parameters_are_options():
    "Each parameter of `run_experiment` is an option or of the session, and its default is the package's."
    from mixsupcon.core.configure import configure
    from mixsupcon.core.methods import all_owners
    from mixsupcon.core.options import options, values
    body = ast.parse(parameters_cell(ROOT/"nbs"/"run_experiment.ipynb")).body
    given = {node.target.id: (node.annotation.id, ast.literal_eval(node.value)) for node in body}
    session = {"method", "preset", "repeats", "wait", "quality", "plugin"}
    owned = {option for part in all_owners() for option in options(part)}
    assert given.keys() - session <= owned and 15 <= len(given) <= 35
    usual = values(configure())
    for option in given.keys() - session:
        assert given[option][1] in (None, usual.get(option)), option


# ---- tests

def test_every_costly_fixture_is_one():
    "A fixture that was renamed would make its tests part of `make check`."
    text = "".join(path.read_text() for path in (ROOT/"tests").glob("test_*.py"))
    assert {*COSTLY} <= {*re.findall(r'@pytest.fixture\(scope="module"\)\ndef (\w+)\(', text)}


# ---- documents

def test_one_version():
    "In the package, its settings, the changelog and the citation."
    settings = ConfigParser()
    settings.read(ROOT/"settings.ini")
    version = settings["DEFAULT"]["version"]
    assert f'__version__ = "{version}"' in (ROOT/"mixsupcon"/"__init__.py").read_text()
    assert re.search(r"^## (\S+)", (ROOT/"CHANGELOG.md").read_text(), re.M)[1] == version
    assert f"version: {version}\n" in (ROOT/"CITATION.cff").read_text()


def test_make_targets_explain_themselves():
    "Every target for users stands in the Makefile's first lines, and CONTRIBUTING names only targets that are there."
    text = (ROOT/"Makefile").read_text()
    targets = {*re.search(r"\.PHONY: (.*)", text)[1].split()} - {"setup"}
    assert targets == {*re.findall(r"^# make (\w+)", text, re.M)}
    for document in ("CONTRIBUTING.md", "README.md", "CHANGELOG.md"):
        named = re.findall(r"^make (\w+)|`make (\w+)", (ROOT/document).read_text(), re.M)
        assert {word for pair in named for word in pair} - {""} <= targets, document


def test_pinned_tools_are_the_installed_ones():
    "What dev asks for stands in constraints.txt, in the version that is here."
    from importlib.metadata import version
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT/"constraints.txt").read_text(), re.M))
    for tool in ("nbdev", "pytest", "pytest-xdist", "ruff", "papermill", "nbclient"):
        assert version(tool) == pinned[tool], tool


def test_the_readme_leads_to_every_notebook():
    "By itself or by its folder."
    links = {ROOT/link.rstrip("/") for link in re.findall(r"\]\((nbs[^)#]*)\)", (ROOT/"README.md").read_text())}
    missing = [path.name for path in NOTEBOOKS if not links.intersection((path, path.parent))]
    assert not missing, missing


def rows_of(text):
    "The table rows of a Markdown text that hold a result: their cells."
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if any("±" in cell for cell in row)]


@pytest.mark.parametrize("page, fewest", [("README.md", 5), ("docs/papers.md", 25)])
def test_pages_say_what_was_measured(page, fewest):
    "Every row with a result stands in a table of the committed report, cell for cell."
    tables = (ROOT/"outputs"/"report").rglob("*.md")
    measured = [row for path in tables for row in rows_of(path.read_text())]
    shown = rows_of((ROOT/page).read_text())
    unknown = [row for row in shown if not any({*row} <= {*other, "–", ""} for other in measured)]
    assert len(shown) >= fewest and not unknown, unknown


def test_nothing_is_unpickled_or_shelled():
    "The one pickle that is read goes through an unpickler that can only build arrays; a user's plugin is executed."
    risky = re.compile(r"torch\.load\((?!.*weights_only=True)|pickle\.loads?\(|allow_pickle|yaml\.load"
                       r"|(?<![.\w])eval\(|(?<![.\w])exec\(|shell=True|extractall|os\.system")
    for path in MODULES:
        plugin = ["exec("] if path.stem == "extend" else []
        assert risky.findall(path.read_text()) == plugin, path.name
