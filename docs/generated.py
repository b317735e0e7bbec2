"Pages that are written from the package itself: its modules, and all methods with their options."
from pathlib import Path

ROOMS = dict(
    core="Core: what the methods compute", papers="Papers: recipes, studies, published numbers",
    lab="Lab: one experiment", report="Report: many runs to tables and figures")


def modules(room: str) -> list:
    "The modules of a room in reading order: that of their notebooks' numbers."
    root = Path(__file__).resolve().parents[1]
    return [f"mixsupcon.{room}.{path.stem[3:]}" for path in sorted((root/"nbs"/room).glob("[0-9][0-9]_*.ipynb"))]


def modules_page() -> str:
    "The page that lists all modules; autosummary writes a page for each."
    lines = ["# Modules", "", "Each module is exported from the notebook of the same name.", ""]
    for room, title in ROOMS.items():
        lines += [f"## {title}", "", "```{eval-rst}", ".. autosummary::", "   :toctree: modules", ""]
        lines += [f"   {name}" for name in modules(room)] + ["```", ""]
    return "\n".join(lines)


def cell(value) -> str:
    "A value as it stands in a table."
    return str(value).replace("|", "\\|").replace("\n", " ") or "–"


def table(head: list, rows: list) -> list:
    "The lines of a Markdown table that scrolls within a narrow page."
    rule = ["---"]*len(head)
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in [head, rule, *rows]]
    return [":::{container} wide", *lines, ":::"]


def option_rows(part: type) -> list:
    "A row for each option that a class owns: name, default, what it may be, what it means."
    from mixsupcon.core import configure, options
    return [(f"`{name}`", f"`{getattr(part, name)}`" if getattr(part, name) != "" else "",
             configure.range_of(kind, name), options.about(part)[name])
            for name, kind in configure.options_of(part).items()]


def methods_page() -> str:
    "All methods, and all options by the class that owns them."
    import mixsupcon.lab.data   # noqa: F401 (it has the names of data sets)
    from mixsupcon.core.methods import METHODS, all_owners
    rows = [(f"`{key}`", getattr(row, "title", key), f"`{row.goal.__name__}`", f"`{row.strategy.__name__}`",
             ", ".join(f"`{k} {v}`" for k, v in row.settings.items()))
            for key, row in METHODS.items()]
    lines = ["# Methods and options", "",
             "A method is a goal and a strategy, with the settings in which the pair differs from both. This page is",
             "written from the package; `options(\"moco_imix\")` shows the same for one method, with its preset's",
             "values.", "", "## Methods", ""]
    lines += table(["method", "name", "goal", "strategy", "settings of its own"], rows)
    lines += ["", "## Options", "", "Each class owns its options. A run has those of its goal, its strategy, and all",
              "other classes below that it uses.", ""]
    for part in all_owners():
        options = option_rows(part)
        if options:
            lines += [f"### {part.__name__}", "", (part.__doc__ or "").splitlines()[0], ""]
            lines += [*table(["option", "default", "allowed", "meaning"], options), ""]
    return "\n".join(lines) + "\n"


def write_pages(folder: Path) -> None:
    "Write the pages that have changed."
    folder.mkdir(exist_ok=True)
    for name, text in dict(modules=modules_page(), methods=methods_page()).items():
        path = folder/f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
