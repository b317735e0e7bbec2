"How Sphinx builds the site: `make docs` writes it to _docs, from the notebooks' stored outputs and without a network."
import json
import os
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from myst_nb import sphinx_ext

os.environ.setdefault("OMP_NUM_THREADS", "1")
DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import generated   # noqa: E402
from mixsupcon import __version__   # noqa: E402

project = "mixsupcon"
author = "mixsupcon contributors"
copyright = "2026 onwards, mixsupcon contributors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints", "images", "_templates"]
suppress_warnings = ["myst.header"]   # a notebook may go from its title to a third level

# pages
nb_execution_mode = "off"       # what is shown is what is stored
nb_ipywidgets_js = {}           # no widgets, so nothing to fetch
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# reference
templates_path = ["_templates"]
autosummary_generate = True
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries = False   # half of the time to build: each page would copy all names of all modules
python_maximum_signature_line_length = 120

# looks
html_theme = "furo"
html_title = "mixsupcon"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


# ---- equations

def mathml(tex, block):
    "An equation as MathML, which browsers draw themselves; there brackets grow without being told to."
    tex = re.sub(r"\\[bB]igg?[lrm]?(?![a-zA-Z])", "", tex).replace(r"\operatorname*", r"\operatorname")
    return tex2mathml(tex, as_block=block)


def inline_math(self, node):
    "An equation within a line."
    self.body.append(mathml(node.astext(), block=False))
    raise nodes.SkipNode


def display_math(self, node):
    "An equation on a line of its own."
    self.body.append(f'<div class="math">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


# ---- pages and their links

COPIES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}   # page → file of the repository


def copy_pages():
    "Notebooks and files of the repository become pages; copies of what is gone go too."
    notebooks = [path.relative_to(ROOT) for path in (ROOT/"nbs").rglob("*.ipynb") if "checkpoints" not in str(path)]
    for old in (path for path in (DOCS/"nbs").rglob("*.ipynb") if path.relative_to(DOCS) not in notebooks):
        old.unlink()
    for page, original in {**COPIES, **dict(zip(notebooks, notebooks))}.items():
        (DOCS/page).parent.mkdir(parents=True, exist_ok=True)
        if not (DOCS/page).exists() or (DOCS/page).read_bytes() != (ROOT/original).read_bytes():
            shutil.copy(ROOT/original, DOCS/page)


def page_link(match, source, docname):
    "A link between files of the repository as one between pages of the site; code where the file is no page."
    text, target = match[1], match[2]
    path, _, anchor = target.partition("#")
    if "://" in path or not path or target.startswith("mailto:"):
        return match[0]
    try:
        there = (source.parent/path).resolve().relative_to(ROOT)
    except ValueError:
        return match[0]
    up = "../"*docname.count("/")
    if there.parts[:2] == ("outputs", "report"):
        inside = Path("report", *there.parts[2:])
        inside = inside if inside.suffix else inside/"index.html"
        return f'<a href="{up}{inside.as_posix()}">{text}</a>'
    pages = {"README.md": "index.md"} | {original: copy for copy, original in COPIES.items()}
    if there.parts[0] == "docs":
        page = Path(*there.parts[1:]).as_posix()
    elif there.parts[0] == "nbs" and there.suffix == ".ipynb":
        page = there.as_posix()
    elif str(there) in pages:
        page = pages[str(there)]
    else:
        return text   # a file of the repository that is no page
    return f"[{text}]({up}{page}{'#' + anchor if anchor else ''})"


def site_links(text, source, docname):
    "A page's text with the links that the site has."
    return re.sub(r"(?<!!)\[([^\[\]]+)\]\(([^()\s]+)\)", lambda match: page_link(match, source, docname), text)


def shown(cell, source, docname):
    "A notebook's cell for the site: exported cells are marked, nbdev's directives left out."
    text = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        cell["source"] = site_links(text, source, docname)
    elif text.startswith("#| export"):
        cell["source"] = text.partition("\n")[2]
        cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "exported"]
    return cell


def copied_from(page):
    "The file of the repository that a page is a copy of, or the page itself."
    inside = page.relative_to(DOCS)
    return ROOT/COPIES.get(str(inside), inside if inside.parts[0] == "nbs" else page)


def prepare(app, docname, content):
    "Turn links between files into links between pages, before a page is read."
    source = copied_from(Path(app.env.doc2path(docname)))
    if source.suffix == ".ipynb":
        notebook = json.loads(content[0])
        cells = [cell for cell in notebook["cells"] if not "".join(cell["source"]).startswith("#| default_exp")]
        notebook["cells"] = [shown(cell, source, docname) for cell in cells]
        content[0] = json.dumps(notebook)
    elif source.suffix == ".md":
        content[0] = site_links(content[0], source, docname)


def module_of(obj):
    "The module in which something was written; of a property, that of its function."
    function = getattr(obj, "fget", None) or getattr(obj, "func", None) or obj
    return getattr(function, "__module__", None) or project


def foreign(app, what, name, obj, skip, options):
    "What another package wrote is left out, such as a method that matplotlib adds to a class."
    return True if module_of(obj).partition(".")[0] not in (project, "builtins") else None


def plain_docstring(app, what, name, obj, options, lines):
    "Docstrings are plain sentences with `code`, and indented examples; lists of options have a page, and are left out."
    if what in ("property", "attribute") and not module_of(obj).startswith(project):
        lines[:] = []   # the docstring of a value's own type
    blocks = "\n".join(lines).rstrip().split("\n\n")
    lines[:] = "\n\n".join(filter(None, map(plain_block, blocks))).splitlines()


def plain_block(block):
    "A block of a docstring: an indented one is an example, one indented in part a list of options."
    indented = [line.startswith(" ") for line in block.splitlines() if line.strip()]
    if indented and all(indented):
        return ".. code-block:: python\n\n" + block
    if any(indented):
        return ""
    text = block.replace("\\", "\\\\").replace("|", "\\|")
    text = re.sub(r"`([^`\n]+)`", r"``\1``", re.sub(r"\*(?!\w\*)(?<!\*\w\*)", r"\\*", text))
    return re.sub(r"(\w)_(?=\W|$)", r"\1\\_", text)


def copy_reports(app, error):
    "The papers' reports lie beside the pages, under report/<scale>."
    if error is None and app.builder.format == "html":
        shutil.copytree(ROOT/"outputs"/"report", Path(app.outdir)/"report", dirs_exist_ok=True)


def setup(app):
    "What Sphinx asks of this file when it starts."
    sphinx_ext.OUTPUT_FOLDER = str(Path(app.doctreedir)/"pictures")   # else it is made beside the site
    copy_pages()
    generated.write_pages(DOCS/"api")
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("source-read", prepare)
    app.connect("autodoc-skip-member", foreign)
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("build-finished", copy_reports)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
