"README and tutorials: their code runs, their commands are understood, their links end at files; the site is complete."
import json
import re
import shutil
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from warm import WARM

ROOT, BIN = Path(__file__).parents[1], Path(sys.executable).parent
WRITTEN = [ROOT/"README.md", *sorted((ROOT/"docs").glob("*.md")), *sorted((ROOT/"docs"/"tutorials").glob("*.md"))]
COPIED = {ROOT/"docs"/"changelog.md", ROOT/"docs"/"contributing.md"}   # written by `make docs`
PAGES = [page for page in WRITTEN if page not in COPIED]
DOCUMENTS = [*PAGES, ROOT/"CONTRIBUTING.md", ROOT/"CHANGELOG.md"]


def name(page):
    return page.stem


def blocks(page, language):
    "The code blocks of a page in a language."
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.S | re.M)


def python_of(page):
    "A page's Python as one program, in one namespace; trainings and probes that say nothing of probes take one epoch."
    lines = "\n".join(blocks(page, "python")).splitlines()
    short = [line if "probe_epochs" in line else re.sub(r"\bepochs=[1-9]\d*", "epochs=1, probe_epochs=1", line)
             for line in lines]
    return "\n".join(short)


def run(words, where):
    done = subprocess.run(words, cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


# ---- code

@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name)
def test_python_runs_as_written(page, project_copy):
    "Top to bottom, in a project of its own."
    for committed in ("pretrained", "report"):
        shutil.copytree(ROOT/"outputs"/committed, project_copy/"outputs"/committed)
    (project_copy/"page.py").write_text(python_of(page))   # in a file, where the source of own parts can be read
    run([*WARM, "page.py"], project_copy)


# ---- commands

def command_lines(page):
    "The command lines of a page's shell blocks, without comments."
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [re.sub(r"(^|\s+)#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if line]


def parameters_of(notebook):
    "The names in a notebook's parameters cell."
    cells = json.loads((ROOT/notebook).read_text())["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return set(re.findall(r"^(\w+):", tagged[0], re.M))


def check_make(words):
    "Its target is one of the Makefile's, and so are the variables that are set."
    makefile = (ROOT/"Makefile").read_text()
    target, *settings = words[1:]
    assert target in re.search(r"\.PHONY: (.*)", makefile)[1].split()
    for variable in (setting.partition("=")[0] for setting in settings):
        assert f"$({variable})" in makefile, variable


def check_papermill(words):
    "The notebook is there and takes the parameters, with these values."
    from mixsupcon.core.configure import configure, owner_of
    import yaml
    paths = [word for word in words[1:] if word.endswith(".ipynb")]
    assert paths and (ROOT/paths[0]).exists(), words
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    here = parameters_of(paths[0])
    for option in given.keys() - here:
        assert owner_of(option), option
    if paths[0] == "nbs/run_experiment.ipynb" and "plugin" not in given:
        free = {"repeats", "wait"}
        configure(**{key: yaml.safe_load(value) for key, value in given.items() if key not in free})


def check_module(words):
    "`python -m mixsupcon …` is a command that its own parser takes, `python -c …` is Python."
    from mixsupcon.lab.command import parser_of, split_command
    if words[1] == "-c":
        return compile(words[2], "a command", "exec")
    assert words[1:3] == ["-m", "mixsupcon"], words
    if words[3:] != ["--help"]:
        command, rest = split_command(words[3:])
        parser_of(command).parse_intermixed_args(rest)


@cache
def help_of_snakemake():
    return subprocess.run([BIN/"snakemake", "--help"], capture_output=True, text=True).stdout


def check_snakemake(words):
    "Every option is one of snakemake's, or of the plugin that its line names."
    known = help_of_snakemake()
    plugins = {"--kubernetes-persistent-volumes"}
    for word in words:
        assert not word.startswith("--") or word in known or word in plugins, word


def check_torchrun(words):
    "What it starts is a command of ours, on options that a method takes."
    from mixsupcon.core.configure import configure
    from mixsupcon.lab.command import number_or_word
    module = words.index("-m")
    check_module(["python", *words[module:]])
    given = dict(word.split("=") for word in words[module + 4:])
    configure(words[module + 3], **{name: number_or_word(value) for name, value in given.items()})


CHECKS = dict(
    make=check_make, papermill=check_papermill, python=check_module, snakemake=check_snakemake, torchrun=check_torchrun)
OTHERS = ". .venv/bin/activate", "pip install", "pipx run pre-commit install", ".venv/bin/nbdev_export", "tensorboard "


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in DOCUMENTS if command_lines(page)], ids=name)
def test_commands_are_understood(page):
    "Notebooks, targets and parameters exist, and the values are accepted."
    for line in command_lines(page):
        words = shlex.split(line)
        if words[0] in CHECKS:
            CHECKS[words[0]](words)
        else:
            assert line.startswith(OTHERS), line


def test_commands_within_sentences_are_understood():
    "What stands between backticks as a command."
    for page in DOCUMENTS:
        for line in re.findall(r"`((?:make|papermill|python -m mixsupcon|python -c) [^`]+)`", page.read_text()):
            words = shlex.split(line)
            CHECKS[words[0]](words)


@pytest.mark.slow
def test_the_first_commands_run(project_copy):
    "README's first line of papermill, shortened, and what it says about the options of `moco_imix`."
    line = next(line for line in command_lines(ROOT/"README.md") if line.startswith("papermill"))
    run([*WARM, BIN/"papermill", *shlex.split(line)[1:], *"-p epochs 1 -p probe_epochs 2".split()], project_copy)
    assert list((project_copy/"outputs"/"runs").glob("*/metrics.json"))
    line = re.search(r"`(python -c .+?)` ", (ROOT/"README.md").read_text())[1]
    assert "queue" in run([sys.executable, *shlex.split(line)[1:]], project_copy)
    assert "mixsupcon" in run([sys.executable, "-m", "mixsupcon", "runs"], project_copy)


# ---- links and tables

def anchors(page):
    "The anchors that a page's headings have."
    words = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_to_files(page):
    "And to headings that are there. Pages that `make docs` writes count as there."
    for link in re.findall(r"\]\(([^()\s]+)\)", re.sub(r"```.*?```|`[^`\n]+`", "`", page.read_text(), flags=re.S)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        there = (page.parent/path).resolve() if path else page
        made = there.parent == ROOT/"docs"/"api" or there in COPIED
        assert made or there.exists(), link
        assert not anchor or there.suffix != ".md" or anchor in anchors(there), link


def test_readme_is_short():
    "Under 165 lines, and no long ones but in tables."
    lines = (ROOT/"README.md").read_text().splitlines()
    assert len(lines) < 165
    assert not [line for line in lines if len(line) > 140 and not line.startswith("|")]


def rows(page, head):
    "The rows of the table whose first line holds `head`: lists of cells."
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and head in line)
    body = lines[start + 2:]
    end = next((i for i, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in body[:end]]


def test_features_beside_other_libraries():
    "README's table is part of the comparison's, word for word, and each claim about us names tests that are there."
    comparison = ROOT/"docs"/"comparison.md"
    full = {row[0]: row for row in rows(comparison, "| mixsupcon | solo-learn")}
    for row in rows(ROOT/"README.md", "| mixsupcon | [solo-learn]"):
        assert full.get(row[0]) == row
    proofs = dict(rows(comparison, "| claim | test"))
    unproved = [claim for claim, row in full.items() if not row[1].startswith("–")]
    assert unproved and set(proofs) == set(unproved) - {"licence"}
    for claim, tests in proofs.items():
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", tests)
        assert named, claim
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT/"tests"/file).read_text(), re.M), f"{file}::{test}"


# ---- the site

class Links(HTMLParser):
    "What a page refers to, and its anchors."

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif tag != "a":
            self.loaded += [given[key] for key in ("src", "href", "data", "srcset", "poster") if given.get(key)]


def outside(link):
    "Whether a link leaves the site."
    return bool(urlsplit(link).netloc or urlsplit(link).scheme not in ("", "data"))


def loaded_from_elsewhere(root, site):
    "What pages and style sheets ask the network for."
    styles = "\n".join(path.read_text() for path in root.rglob("*.css"))
    asked = re.findall(r"""(?:url\(|@import\s*)["']?(https?:[^"')]+|//[^"')]+)""", styles)
    return {link for page in site.values() for link in page.loaded if outside(link)}.union(asked)


def dead_links(site):
    "Links within the site to a file or an anchor that is not there."
    dead = []
    for path, page in site.items():
        for link in (link for link in page.links + page.loaded if not outside(link) and not link.startswith("data:")):
            address = urlsplit(link)
            there = (path.parent/unquote(address.path)).resolve() if address.path else path
            there = there/"index.html" if there.is_dir() else there
            found = there.exists() and (not address.fragment or there not in site
                                        or unquote(address.fragment) in site[there].ids)
            dead += [] if found else [f"{path.name}: {link}"]
    return sorted(set(dead))


def expected_pages():
    "The pages of all notebooks and modules."
    notebooks = [path for path in (ROOT/"nbs").rglob("*.ipynb") if "checkpoints" not in str(path)]
    modules = [path for path in (ROOT/"mixsupcon").glob("*/[a-z]*.py")]
    return [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in notebooks] \
        + [f"api/modules/mixsupcon.{path.parent.name}.{path.stem}.html" for path in modules]


@pytest.mark.slow
def test_the_site(tmp_path):
    "As `make docs` builds it: complete, no dead link, and it asks the network for nothing; a warning is an error."
    from mixsupcon.lab.experiment import Result
    root = tmp_path/"html"
    run([*WARM, BIN/"sphinx-build", "-q", "-W", "--keep-going", "-d", tmp_path/"trees", ROOT/"docs", root], ROOT)
    assert {path.name for path in tmp_path.iterdir()} == {"html", "trees"}   # and nothing beside it
    site = {path: Links(path.read_text()) for path in root.rglob("*.html")}
    assert not loaded_from_elsewhere(root, site)
    assert not dead_links(site)
    assert not [page for page in expected_pages() if not (root/page).exists()]
    reference = (root/"reference.html").read_text()
    members = [name for name in dir(Result) if not name.startswith("_")]
    hidden = [name for name in members if f'<span class="pre">{name}</span>' not in reference]
    assert members and not hidden
    assert "# safetensors with a model card" in reference   # the example of `experiment`
    losses, mixers = root/"nbs/core/02_losses.html", root/"nbs/core/01_mixers.html"
    assert "<math" in losses.read_text() and "MathJax" not in losses.read_text()   # equations need no script
    assert any("_images/" in link for link in site[mixers].loaded)                  # stored pictures are shown
