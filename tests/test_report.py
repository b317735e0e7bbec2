"Reports: every number leads to its runs, nothing missing or odd is hidden, and no report is lost."
import filecmp
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import tiny
from mixsupcon.core.configure import Figure, Paper, Study, configure, papers
from mixsupcon.core.options import amended, refused
from mixsupcon.lab.experiment import experiment
from mixsupcon.lab.runs import read_config, read_json, write_json
from mixsupcon.report import publish
from mixsupcon.report.publish import ARCHIVE, SUMS, other_folders, print_end, read_sums, write_report
from mixsupcon.report.statistics import holm
from mixsupcon.report.studies import Planned, find_runs, jobs, missing_runs, plan, run_key, write_example_run
from mixsupcon.report.tables import NUMBERS, numbers_of, published_table, results
from warm import WARM

ROOT = Path(__file__).parents[1]
LEVELS = dict(untrained=.6, supcon=.88, simclr=.78, mixsupcon=.89, ce=.88, hot=.8)
EVIL = "<script>alert('x')</script>"


def two_studies(scale):
    "Two studies that share a row, with every kind of figure that made-up runs can show."
    methods = {name: dict(method=name) for name in ("simclr", "supcon", "mixsupcon", "ce")}
    data = {"digits": dict(preset="digits50")}
    kinds = "learning", "confusion", "differences", "scatter", "t-SNE"
    figures = (*(Figure(kind, f"A figure: {kind}") for kind in kinds), Figure("learning", "Probe", dict(curve="probe")))
    points = {"supcon": (.1, "supcon"), "hot": (.5, "supcon")}
    line = Figure("line", "Temperature", dict(x="τ", points=points))
    rows = dict(supcon=dict(method="supcon"), hot=dict(method="supcon", tau=.5))
    return dict(
        linear=Study("Linear evaluation", dict(untrained=dict(method="supcon", epochs=0)) | methods, "supcon", data,
                     seeds=12, figures=figures),
        heat=Study("Temperature", rows, dict(hot="supcon"), data, seeds=10, shows=("knn5",), figures=(line,)))


ADDRESS = "https://example.org/a_paper?x=1"
PAPER = dict(test=Paper(f"A test {EVIL}", f"{EVIL}{ADDRESS}.", {}, two_studies, "MixSupCon"))


def change(path, **changes):
    "Write other values into a JSON file."
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Runs of both studies: one is missing, one unfinished, one altered, one of other code; foreign and odd folders."
    root, noise = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for run in plan("small", papers=PAPER):
        level = round(LEVELS[run.row] + noise.normal(0, .01), 4)
        if (run.row, run.seed) != ("ce", 9) and not (run.study == "heat" and run.row == "supcon"):
            code = {"core.losses.supcon": "b" if (run.row, run.seed) == ("mixsupcon", 2) else "a"}
            write_example_run(root, run.cfg, level, finish=(run.row, run.seed) != ("simclr", 3), code=code)
    table = find_runs(plan("small", papers=PAPER), root)[0]
    change(table[(table.row == "supcon") & (table.seed == 5)].folder.iloc[0]/"linear.json", curve=[1.])
    foreign = write_example_run(root, configure(preset="digits50", tau=.25), .9)
    change(foreign/"config.json", fidelity=EVIL, source=EVIL)
    (root/"somebody's <b>notes").mkdir()
    odd = dict(empty="", list="[]", null="null", deep="["*50_000, cut='{"config": {', script=json.dumps(EVIL))
    for name, text in odd.items():
        (root/name).mkdir()
        (root/name/"config.json").write_text(text)
    return root


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    "The report of those runs: its results, its figures, its folder."
    return write_report("small", runs, tmp_path_factory.mktemp("report"), PAPER)


class Page(HTMLParser):
    "The ids, the links, the texts and the tags of a page, and the texts of each part that has an id."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.tags, self.texts, self.parts, self.open = [], [], [], [], {}, []
        self.citations = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, given):
        given = dict(given)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        outside = tag == "a" and given["href"].startswith("https://") and given["rel"] == "noreferrer"
        (self.citations if outside else self.links).extend(given[name] for name in ("href", "src") if name in given)
        if tag in ("div", "tr"):
            self.open.append((tag, given.get("id")))

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1][0]:
            self.open.pop()

    def handle_data(self, data):
        self.texts.append(data)
        for _, part in self.open:
            self.parts.setdefault(part, []).append(data)


def pages_in(out):
    "The pages of a report by file."
    return {path.name: Page(path) for path in sorted(out.glob("*.html"))}


def broken_links(out):
    "Every link of every page that does not end at a file of the report, or at a part of one of its pages."
    pages, broken = pages_in(out), []
    for file, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), file
        for link in page.links:
            path, _, anchor = link.partition("#")
            target = out/unquote(path or file)
            inside = target.is_file() and target.resolve().is_relative_to(out.resolve())
            good = inside and (not anchor or unquote(anchor) in pages[target.name].ids)
            broken += [(file, link)]*(not good and link != "data:,")   # the page's empty icon
    return broken


@pytest.fixture(scope="module")
def pages(report):
    return pages_in(report[2])


@pytest.fixture(scope="module")
def page(pages):
    "The paper's page."
    return pages["test.html"]


def headline(folder):
    "A run's last accuracy, from its file."
    return json.loads((folder/"linear.json").read_text())["rows"][0]["value"]


# tables

def test_means_are_those_of_the_files(report):
    "Every mean and standard deviation of every study, from the runs' own files."
    made = report[0]
    for study, table in made.tables.items():
        for row in table.to_dict("records") if study in made.studies else ():
            part = made.numbers[(made.numbers.study == study) & (made.numbers.row == row["row"])]
            values = [100*headline(folder) for folder in part[part.state.isin(["complete", "other code"])].folder]
            assert len(values) == row["runs"] and row["planned"] == len(part)
            assert np.isclose(np.mean(values), row["linear mean"])
            assert np.isclose(np.std(values, ddof=1), row["linear std"])


def test_differences_are_paired_by_seed(report):
    "Difference and p value of a row by hand: seeds that both have, all sign patterns, Holm over the table."
    made = report[0]
    table = made.tables["linear"].set_index("row")
    having = made.numbers[(made.numbers.study == "linear") & made.numbers.linear.notna()]
    values = {row: part.set_index("seed").linear for row, part in having.groupby("row")}
    for row in ("simclr", "mixsupcon", "ce"):
        d = (100*(values[row] - values["supcon"])).dropna().to_numpy()
        assert len(d) == table.pairs[row] == (11 if row == "mixsupcon" else 10)   # 5 is altered, 3 and 9 are not there
        signs = np.array(list(itertools.product([1, -1], repeat=len(d))))
        assert np.isclose(table.difference[row], d.mean()) and table.low[row] <= d.mean() <= table.high[row]
        assert np.isclose(table.p[row], (abs(signs @ d) >= abs(d.sum()) - 1e-9).mean())
    assert np.isnan(table.p["supcon"]) and np.allclose(table.holm, holm(table.p), equal_nan=True)


def test_each_row_with_its_own_base(report):
    "A baseline by row: the bases have no difference, the column says so."
    words = report[0].words["heat"][1].set_index("row")
    assert words["difference from its base [95 %]"]["supcon"] == "–"
    assert words.seeds.to_dict() == dict(supcon="9 of 10", hot="10")
    assert report[0].words["heat"][2].startswith("19 of 20 runs count so far: what follows may change with the others. "
                                                 "Significantly below their bases: hot.")


def test_files_hold_the_tables(report):
    "CSV to six digits, Markdown and LaTeX with every row."
    made, _, out = report
    for name, table in made.tables.items():
        stored = pd.read_csv(out/"tables"/f"{name}.csv")
        assert np.allclose(stored.select_dtypes("number"), table.select_dtypes("number"), rtol=1e-5, equal_nan=True)
        for kind, mark in (("md", "| {} |"), ("tex", " {} ")):
            text = (out/"tables"/f"{name}.{kind}").read_text()
            assert all(mark.format(row) in text for row in table.row), (name, kind)
        assert (out/"tables"/f"{name}.tex").read_text().count(r"\textbf") == made.best[name].to_numpy().sum()
    stored = pd.read_csv(out/"tables"/"runs.csv")
    assert len(stored) == len(made.numbers) and stored.state.tolist() == made.numbers.state.tolist()


@pytest.mark.slow
def test_same_folders_same_bytes(runs, report, tmp_path):
    "Tables, figures and page, written a second time."
    out = report[2]
    again = write_report("small", runs, out.with_name("again"), PAPER)[2]
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [name for name in files if (out/name).read_bytes() != (again/name).read_bytes()] == []


# the pages

def test_what_is_missing_is_named(report, pages):
    "The missing seed, the unfinished and the altered run, by folder and notebook; in the table how many seeds."
    made, _, out = report
    missing = missing_runs(made.numbers).set_index("state")
    linear = missing[missing.study == "linear"]
    assert linear.row.to_dict() == dict(missing="ce", unfinished="simclr", altered="supcon")
    assert linear.seeds.to_dict() == dict(missing="9", unfinished="3", altered="5")
    assert linear.folders["missing"] == ""
    named = {*linear.notebook, linear.folders["unfinished"], linear.folders["altered"]}
    assert named <= {*pages["index.html"].texts}
    seeds = made.words["linear"][1].set_index("row").seeds.to_dict()
    assert seeds == dict(untrained="12", simclr="11 of 12", supcon="11 of 12", mixsupcon="12", ce="11 of 12")


def test_other_folders_are_named_with_their_reason(runs, report, capfd):
    "What no study needs, what is no run, what cannot be read: on the terminal, as a clone has none of it; in no table."
    made, _, out = report
    foreign = other_folders(made).set_index("folder")["in no table, because"].to_dict()
    assert len(foreign) == 8 and sum("no study" in reason for reason in foreign.values()) == 1
    print_end(made, out)
    terminal = capfd.readouterr().err
    for name, reason in foreign.items():
        assert f"{name}: {reason}" in terminal and str(runs) not in reason
        assert not any(reason in path.read_text() for path in out.glob("*.html"))


def test_runs_of_other_code_are_named(report, page):
    "A sentence under the table, and a note at the run."
    sentence = "One run was made by another version of core.losses.supcon."
    assert report[0].words["linear"][2].endswith(sentence) and "another version" not in report[0].words["heat"][2]
    assert page.parts["runs-linear-digits-mixsupcon"].count("core.losses.supcon") == 1
    assert page.texts.count("core.losses.supcon") == 1


def test_every_row_leads_to_its_runs_and_back(runs, report, page):
    "The name of a row ends at its runs, which are the folders whose numbers went into its mean, and they lead back."
    made, _, out = report
    for name in made.studies:
        for row, mean in zip(made.words[name][1].row, made.tables[name]["linear mean"]):
            anchor = f"{name}-digits-{row}"
            assert page.links.count(f"#runs-{anchor}") == page.links.count(f"#row-{anchor}") == 1
            assert row in page.parts[f"row-{anchor}"]
            folders = [runs/text for text in page.parts[f"runs-{anchor}"] if text.startswith(("supcon-", "simclr-",
                                                                                               "mixsupcon-", "ce-"))]
            assert np.isclose(100*np.mean([headline(folder) for folder in folders]), mean)
    shared = pages_in(out)["all.html"]
    assert "test.html#runs-linear-digits-supcon" in shared.links


def test_every_link_ends_in_the_report(report, pages):
    "Of every page: at a file of the report, or at a part of a page, and no run folder; but for citations' addresses."
    made, _, out = report
    assert broken_links(out) == [] and [*pages] == ["all.html", "index.html", "test.html"]
    assert [pages[name].citations for name in ("index.html", "test.html", "all.html")] == [[ADDRESS], [ADDRESS], []]
    text = "".join(path.read_text() for path in out.glob("*.html"))
    assert len(re.findall(r"(?:href|src)=.?(?:\w+:)?//", text)) == 2   # nothing else has an address of the network
    assert "lazy" not in text                                          # a printed page has all of its figures
    figures = {link for link in pages["test.html"].links if link.startswith("figures/")}
    assert figures == {f"figures/{path.name}" for path in (out/"figures").iterdir()} and len(figures) == 14


def test_a_page_says_what_its_runs_depend_on(page):
    "Settings as a table, those the baseline has not in bold; recipe and fidelity; numbers and folder of each run."
    texts = page.parts["runs-heat-digits-hot"]
    assert texts[texts.index("tau") + 1] == "0.5" and "supcon (SupCon)" in texts
    assert any("fidelity: changed." in text or "fidelity: ours." in text for text in texts)
    assert "in bold those that differ from supcon's" in "".join(texts)


def test_the_best_of_a_column_is_bold(report):
    "The largest mean of each accuracy, by hand; never the baseline for its own sake, no number of runs, no p value."
    made, _, out = report
    for name in made.studies:
        words, best = made.words[name][1], made.best[name]
        for title in words:
            means = words[title].str.split(" ± ").str[0]
            top = max(means, key=float) if title.startswith(("linear (", "kNN")) else None
            assert best[title].tolist() == [mean == top for mean in means], title
    text = (out/"test.html").read_text()
    assert text.count("<strong>") == sum(made.best[name].to_numpy().sum() for name in made.studies)
    assert "bold says nothing about significance" in text


def test_one_p_value_for_one_comparison(report):
    "A study of one comparison has a column p, one of several has Holm's; none has both."
    words = {name: [*report[0].words[name][1]] for name in report[0].studies}
    assert [title for title in words["heat"] if title.startswith("p")] == ["p"]
    assert [title for title in words["linear"] if title.startswith("p")] == ["p (Holm)"]


def test_markup_from_folders_is_text(report, pages):
    "A script in a folder's records, in a folder's name or in a paper's title never becomes a tag."
    for name, page in pages.items():
        assert page.tags.count("script") == 1 and "b" not in page.tags, name
    assert EVIL in pages["index.html"].texts and EVIL in pages["test.html"].texts
    assert not any("<script>alert" in path.read_text() for path in report[2].glob("*.html"))


ODD_NAMES = EVIL, "$x^2$ and $", "数据增强与混合", "w"*200, "a/../../b", "50 % & more_less #1", "—"


@pytest.mark.slow
def test_odd_names_are_harmless(tmp_path):
    "Of studies, rows, data and papers: every page, table and figure is written, and every link ends."
    rows = {name: dict(method="supcon", tau=.1 + i/100) for i, name in enumerate(ODD_NAMES)}
    figures = tuple(Figure(kind, name) for kind, name in zip(("learning", "differences", "scatter"), ODD_NAMES))
    data, few = {ODD_NAMES[3]: dict(preset="digits50")}, {name: rows[name] for name in ODD_NAMES[:2]}
    odd = {name: Study(name, few, ODD_NAMES[0], data, seeds=2) for name in ODD_NAMES}
    odd[EVIL] = odd[EVIL]._replace(rows=rows, figures=figures)
    papers = {name: Paper(name, name, {}, lambda scale, name=name: {name: odd[name]}) for name in ODD_NAMES}
    for run in {run_key(run.cfg): run for run in plan("small", papers=papers)}.values():
        write_example_run(tmp_path/"runs", run.cfg, .5 + run.cfg.seed/10 + run.cfg.tau)
    made, drawings, out = write_report("small", tmp_path/"runs", tmp_path/"report"/"small", papers)
    assert {drawing.problem for drawing in drawings.values()} == {None} and broken_links(out) == []
    assert all(page.tags.count("script") == 1 for page in pages_in(out).values())
    assert len(list((out/"tables").glob("*.csv"))) == len(made.words) + 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["report", "runs"]


def browser():
    "A browser without a window, if there is one."
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(not browser(), reason="needs chromium")
def test_a_table_is_sorted_in_a_browser(report, tmp_path):
    "By a click on a column's button: up, down, as it was; without an error on the console, and without a network."
    out = shutil.copytree(report[2], tmp_path/"report")
    script = """<script>
      const table = document.querySelector("table.sort"), button = table.tHead.rows[0].cells[2].firstChild, seen = [];
      const rows = () => [...table.tBodies[0].rows].map(row => row.cells[1].querySelector("a").textContent).join();
      for (let i = 0; i < 4; i++) {
        seen.push(rows() + " " + button.closest("th").getAttribute("aria-sort")); button.click()}
      document.title = seen.join(";")</script></body>"""
    page = out/"test.html"
    page.write_text(page.read_text().replace("</body>", script))
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path/'profile'}",
               "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    first, up, down, again = re.search("<title>(.*?)</title>", done.stdout)[1].split(";")
    assert "CONSOLE" not in done.stderr and first == again
    order = ["untrained", "simclr", "ce", "supcon", "mixsupcon"]
    means = report[0].tables["linear"].set_index("row")["linear mean"]
    order = sorted(order, key=lambda row: round(means[row], 1))
    assert up == f"{','.join(order)} ascending" and down.endswith(" descending")
    assert down.split()[0].split(",")[-1] == "untrained" and first.startswith("untrained,simclr,supcon")


@pytest.mark.slow
def test_fidelity_is_computed(runs, tmp_path):
    "What a folder says of its own fidelity is not believed."
    root = tmp_path/"runs"
    cfg = plan("small", papers=PAPER)[0].cfg
    folder = write_example_run(root, cfg, .9, finish=False)
    change(folder/"config.json", fidelity="paper", source="a paper")
    write_example_run(root, cfg, .9)
    _, _, out = write_report("small", root, tmp_path/"report", PAPER)
    text = (out/"test.html").read_text()
    assert "fidelity: changed." in text   # no epochs at all
    assert "a paper;" not in text and "fidelity: paper" not in text


# what counts as a run of the plan

FILES = "config.json", "linear.json", "knn.json", "training.json", "metrics.json", "log.jsonl", "net.safetensors"
ODD = "", "[]", "null", "{", "3", '"x"', "["*50_000, '{"rows": 3, "seals": {}}', '{"rows": [3]}', '{"net": NaN}'


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_noticed(runs, tmp_path, name):
    "Whichever of a run's files is changed, the run leaves the tables."
    root = shutil.copytree(runs, tmp_path/"runs")
    planned = plan("small", ["heat"], PAPER)
    folder = next(run.folder for run in find_runs(planned, root)[0].itertuples() if run.state == "complete")
    data = bytearray((folder/name).read_bytes())
    at = next((i for i, byte in enumerate(data) if chr(byte).isdigit()), 0)
    data[at] = ord("7") if data[at] != ord("7") else ord("8")
    (folder/name).write_bytes(data)
    table = find_runs(planned, root)[0]
    assert "complete" not in table[table.folder == folder].state.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("name", [*FILES[:-1], "env.json"])
def test_an_odd_file_never_ends_a_report(tmp_path, name, text):
    "Whatever a file of a run holds, the tables of the others are made."
    planned = [run for run in plan("small", ["heat"], PAPER) if run.seed < 2]
    for run in planned:
        folder = write_example_run(tmp_path, run.cfg, .9)
    (folder/name).write_text(text)
    made = results("small", ["heat"], tmp_path, PAPER)
    kept = made.numbers[made.numbers.linear.notna()]
    assert folder not in kept.folder.tolist() and len(kept) == 3


def test_an_odd_seal_of_the_owner_is_no_number(tmp_path):
    "Sealed records without numbers: the run counts as altered."
    from mixsupcon.lab.runs import seal, write_json
    run = plan("small", ["heat"], PAPER)[0]
    folder = write_example_run(tmp_path, run.cfg, .9, finish=False)
    linear = json.loads((folder/"linear.json").read_text())
    write_json(folder/"linear.json", linear | dict(rows=[dict(protocol="x")]))
    seal(folder, ["linear", "knn"])
    made = results("small", ["heat"], tmp_path, PAPER)
    assert made.numbers.state.tolist()[0] == "altered" and made.numbers.linear.isna().all()


def test_what_makes_a_run_answer_a_plan():
    "Not where the data lay, nor the preset's name; but the seed, the device and every option that counts."
    cfg = configure("supcon", preset="digits50", device="cpu")
    alike = dict(data_dir="x"), dict(download="missing"), dict(precision="float32"), dict(save_seconds=1.)
    same = [amended(cfg, **given) for given in alike]
    own = {name: getattr(cfg, name) for name in ("train_images", "epochs", "batch_size", "lr")}
    same.append(configure("supcon", preset="digits", device="cpu", **own))
    assert {run_key(other) for other in same} == {run_key(cfg)} and same[-1].preset != cfg.preset
    unlike = dict(seed=1), dict(device="cuda"), dict(tau=.2), dict(precision="bfloat16"), dict(probe_lr=.4)
    assert len({run_key(amended(cfg, **given)) for given in unlike} | {run_key(cfg)}) == 6


def test_runs_of_the_first_version_count(first_version_runs):
    "A stored folder of the first version answers the plan of its configuration; its code is named beside newer runs'."
    folders = sorted(first_version_runs.iterdir())
    cfgs = [read_config(folder) for folder in folders]
    planned = [Planned("old", "digits", cfg.method, cfg.seed, cfg.seed, {}, cfg) for cfg in cfgs]
    table, foreign = find_runs(planned, first_version_runs)
    assert set(table.state) == {"complete"} and table.folder.tolist() == folders and not foreign
    ce = cfgs[[cfg.method for cfg in cfgs].index("ce")]
    quick = dict(image_size=8, epochs=2, probe_epochs=2, device="cpu", seed=0)
    assert run_key(ce) == run_key(configure("ce", preset="digits50", **quick))
    for seed in (1, 2):
        cfg = amended(ce, seed=seed)
        write_example_run(first_version_runs, cfg, .9, code=dict(losses="a"))
        planned.append(Planned("old", "digits", "ce", seed, seed, {}, cfg))
    table = find_runs(planned, first_version_runs)[0]
    assert set(table[table.seed.isin([1, 2]) & (table.row == "ce")].state) == {"complete"}
    assert table.state[table.folder == folders[0]].tolist() == ["other code"]


def test_of_two_folders_of_one_run_the_complete_one_counts(tmp_path):
    "And the other one is listed."
    run = plan("small", ["heat"], PAPER)[0]
    first = write_example_run(tmp_path, run.cfg, .9, finish=False)
    twin = shutil.copytree(first, tmp_path/"twin")
    write_example_run(tmp_path, run.cfg, .9)
    table, foreign = find_runs([run], tmp_path)
    assert table.folder.tolist() == [first] and foreign == {twin: f"the same run as {first.name}"}


def test_a_shared_notebook_makes_all_seeds_that_any_study_needs(tmp_path):
    "Rows of two studies that are the same run have one notebook, with the larger number of seeds."
    for order in (two_studies, lambda scale: dict(reversed(two_studies(scale).items()))):
        made = jobs("small", tmp_path, dict(test=Paper("", "", {}, order)))
        repeats = [job.parameters["repeats"] for job in made.values() if job.parameters["method"] == "supcon"]
        assert len(made) == 6 and sorted(repeats) == [10, 12, 12]


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_jobs_have_distinct_names_and_all_runs(tmp_path, scale):
    "No two notebooks of a scale under one name; each planned run is made by one."
    runs, made = plan(scale), jobs(scale, tmp_path)
    keys = {run_key(run.cfg) for run in runs}
    assert not any(job.done for job in made.values())
    assert sum(job.parameters["repeats"] for job in made.values()) == len(keys)


# a report is never lost

def one_study(scale):
    "A study of two rows with figures from logs and from pictures."
    kinds = "learning", "t-SNE"
    rows = dict(supcon=dict(method="supcon"), ce=dict(method="ce"))
    figures = tuple(Figure(kind, kind) for kind in kinds)
    return dict(pair=Study("A pair", rows, "supcon", {"digits": dict(preset="digits50")}, seeds=3, figures=figures))


PAIR = dict(pair=Paper("A pair", "", {}, one_study))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    "A project with the runs of a pair, and their report."
    project = tmp_path_factory.mktemp("project")
    for i, run in enumerate(plan("small", papers=PAIR)):
        folder = write_example_run(project/"runs", run.cfg, .8 + i/100)
        xy = [[i, i*i] for i in range(20)]
        result = dict(xy=xy, y=[0, 1]*10, classes=["a", "b"], silhouette=.5, knn20=.9, gap=.1)
        write_json(folder/"tsne.json", result)
    made, drawings, out = write_report("small", project/"runs", project/"report"/"small", PAIR)
    assert {drawing.problem for drawing in drawings.values()} == {None}
    return project


def write_pair(project, **given):
    "Write the report of a project's runs."
    return write_report("small", project/"runs", project/"report"/"small", PAIR, **given)


@pytest.fixture
def no_figures(monkeypatch):
    "Reports without figures, which take most of the time."
    monkeypatch.setattr(publish, "draw_figures", lambda made: {})


def clone_of(published, target):
    "What a clone of the project has: the report, no runs."
    shutil.copytree(published/"report", target/"report")
    return target


def differing(a, b):
    "The files of two folders that are not the same bytes, or in one of them only."
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} for folder in (a, b)]
    both = sorted(names[0] & names[1])
    return sorted(names[0] ^ names[1]) + filecmp.cmpfiles(a, b, both, shallow=False)[1]


def is_whole(out):
    "Whether a report has just the files that it was written with, byte for byte."
    files = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in out.rglob("*") if path.is_file() and path.name != SUMS}
    return files == read_sums(out) and "index.html" in files


@pytest.mark.slow
def test_a_clone_makes_the_same_report(published, tmp_path, capfd):
    "From the records alone, byte for byte; it says so on the terminal, and no job counts as done."
    clone = clone_of(published, tmp_path)
    write_pair(clone)
    assert differing(published/"report"/"small", clone/"report"/"small") == []
    assert "6 of the 6 runs are shown from the last report's records" in capfd.readouterr().err
    assert not any(job.done for job in jobs("small", clone/"runs", PAIR).values())
    assert {path.suffix for path in (clone/"cache").rglob("*") if path.is_file()} == {".json", ".jsonl"}   # no weights


def test_the_archive_is_deterministic(published, tmp_path):
    "Other times, owners and order of the folders: the same archive, though compressed anew."
    folders = sorted((published/"runs").iterdir())
    copies = [shutil.copytree(folder, tmp_path/folder.name) for folder in reversed(folders)]
    for i, path in enumerate(tmp_path.rglob("*")):
        os.utime(path, (i, i))
    archive = published/"report"/"small"/ARCHIVE
    assert publish.pack_records(copies, b"") == archive.read_bytes()


def test_runs_win_over_records(published, tmp_path, no_figures):
    "A run that is trained again counts instead of its record, an unfinished or altered one does not."
    clone = clone_of(published, tmp_path)
    planned = plan("small", papers=PAIR)
    write_example_run(clone/"runs", planned[0].cfg, .5)
    write_example_run(clone/"runs", planned[1].cfg, .5, finish=False)
    change(write_example_run(clone/"runs", planned[2].cfg, .5)/"linear.json", curve=[.1])
    made = write_pair(clone)[0]
    numbers = made.numbers.linear.round(3).tolist()
    assert numbers[:3] == [.5, .81, .82] and set(made.numbers.state) == {"complete"}
    assert sorted(made.foreign.values()) == ["altered: its record counts", "unfinished: its record counts"]


@pytest.mark.slow
def test_a_report_of_fewer_runs_replaces_none(published, tmp_path, no_figures):
    "Without the archive the runs are not there: how many and which; told to, it is replaced."
    clone = clone_of(published, tmp_path)
    out = clone/"report"/"small"
    (out/ARCHIVE).unlink()
    write_example_run(clone/"runs", plan("small", papers=PAIR)[0].cfg, .8)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    sentence = refused(write_pair, clone)
    assert "shows 6 runs, and 5 of them are not there now: " in sentence and "REPLACE=fewer" in sentence
    assert "pair (5 of ce, supcon)" in sentence
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in out.parent.iterdir()] == ["small"]
    assert len(write_pair(clone, replace="fewer")[0].numbers.dropna(subset="linear")) == 1 and is_whole(out)
    assert write_pair(clone)[0].numbers.state.tolist().count("complete") == 1   # and is now the last report


@pytest.mark.slow
def test_a_tampered_archive_is_named(published, tmp_path, no_figures):
    "A flipped bit or another archive in its place: refused by name where its runs are needed, else written anew."
    clone = clone_of(published, tmp_path)
    out, whole = clone/"report"/"small", (published/"report"/"small"/ARCHIVE).read_bytes()
    for data in (whole[:99] + bytes([whole[99] ^ 1]) + whole[100:], whole[:-1], b"", whole + b"x"):
        (out/ARCHIVE).write_bytes(data)
        sentence = refused(write_pair, clone)
        assert f"{ARCHIVE} is not the file that {SUMS} beside it names" in sentence and "6 of them" in sentence
    write_report("small", published/"runs", out, PAIR)
    assert (out/ARCHIVE).read_bytes() == whole


@pytest.mark.slow
def test_a_tampered_record_is_altered(published, tmp_path, no_figures):
    "A number changed inside a record, with sums to match: its seal tells, and the run leaves the tables."
    clone = clone_of(published, tmp_path)
    out = clone/"report"/"small"
    records = publish.unpack_records(out, tmp_path/"records")
    folders = sorted(records.iterdir())
    path = folders[0]/"linear.json"
    path.write_text(path.read_text().replace("0.8", "0.9"))
    (out/ARCHIVE).write_bytes(publish.pack_records(folders, b""))
    (out/SUMS).write_text(publish.sums_of(out))
    assert "1 of them is not there now" in refused(write_pair, clone)
    made = write_pair(clone, replace="fewer")[0]
    assert sorted(made.numbers.state) == ["altered"] + 5*["complete"]


KILLED = "write_tables", "sums_of", "put", "exchange"
NO_RUNS = dict(other=Paper("Another", "", {}, lambda scale: dict(other=one_study(scale)["pair"])))


def kill_within(project, **patches):
    "Write a report, without figures, in a process with other functions in the module's place, which is killed."
    if not (child := os.fork()):
        with suppress(BaseException):
            for name, function in dict(draw_figures=lambda made: {}, **patches).items():
                setattr(publish, name, function)
            write_pair(project)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def kill(*args, **given):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_while_writing(published, tmp_path, name):
    "Whenever the process dies, the old report is there, whole; the next call removes what it left."
    out = clone_of(published, tmp_path)/"report"/"small"
    kill_within(tmp_path, **{name: kill})
    assert is_whole(out) and (out.parent/".small.new").exists()
    assert "6 of them are not there now" in refused(write_report, "small", tmp_path/"none", out, NO_RUNS)
    assert is_whole(out) and [path.name for path in out.parent.iterdir()] == ["small"]


@pytest.mark.slow
def test_killed_between_two_renames(published, tmp_path):
    "Where folders cannot be exchanged: the old report steps aside, and comes back with the next call."
    out = clone_of(published, tmp_path)/"report"/"small"
    kill_within(tmp_path, exchange=lambda new, out: out.rename(out.with_name(".small.old")) and kill())
    assert not out.exists()
    assert "6 of them are not there now" in refused(write_report, "small", tmp_path/"none", out, NO_RUNS)
    assert is_whole(out) and [path.name for path in out.parent.iterdir()] == ["small"]


def test_files_of_others_stay(published, tmp_path, no_figures):
    "What no report wrote is kept; what a report wrote and is no longer there goes."
    clone = clone_of(published, tmp_path)
    out = clone/"report"/"small"
    (out/"notes.md").write_text("mine")
    (out/"tables"/"old.csv").write_text("old")
    (out/SUMS).write_text((out/SUMS).read_text() + "0  tables/old.csv\n")
    write_pair(clone)
    assert (out/"notes.md").read_text() == "mine" and not (out/"tables"/"old.csv").exists()


# published numbers

RELEASED = [   # method, preset, data, measure, published numbers that may stand beside
    ("supcon", "supcontrast_readme", "cifar10", "MixSupCon", [96.0]),
    ("mocon_imix", "imix_cifar100", "cifar100", "i-Mix", [78.1]),
    ("moco_unmix", "moco_cifar", "cifar100", "Un-Mix", [67.33]),
    ("byol_unmix", "wmse_authors", "cifar100", "Un-Mix", [71.5, 63.83]),
    ("wmse4", "wmse_authors_stl10", "stl10", "Un-Mix", [91.75, 88.59]),
    ("ce", "amix_cifar100", "cifar100", "AMix", [78.04]),
    ("amix", "amix_tiny", "tiny_imagenet", "AMix", [68.56]*3),   # Tables 1, 3 and 8
    ("moco", "amix_stl10", "stl10", "AMix", [81.5]),
    ("amix_i", "amix_stl10", "stl10", "AMix", [85.44])]          # Table 7; Table 4 has another number


def measured(cfgs):
    "A table of made-up runs of these configurations."
    from mixsupcon.report.tables import NUMBERS
    rows = [dict(cfg=cfg, seed=cfg.seed, state="complete") | dict.fromkeys(NUMBERS, .5 + .1*cfg.seed) for cfg in cfgs]
    return pd.DataFrame(rows)


@pytest.mark.slow
@pytest.mark.parametrize("method, preset, data, paper, numbers", RELEASED)
def test_published_beside_the_same_recipe(method, preset, data, paper, numbers):
    "The mean over seeds, on another device too; a short run and a changed one are never beside."
    given = dict(method=method, preset=preset, dataset=data)
    runs = measured([configure(**given, seed=0), configure(**given, seed=1, device="cpu")])
    rows = published_table(runs).query("measured != ''")
    assert rows.published.tolist() == numbers and set(rows.paper) == {paper}
    assert set(rows.measured) == {"55.0 ± 7.1"}
    others = [configure(**given | other) for other in (dict(epochs=10), dict(weight_decay=.01))]
    assert set(published_table(measured(others)).measured) == {""}


@pytest.mark.slow
def test_published_beside_the_same_network():
    "A table with several networks for one data set: each number beside the runs of its own."
    cfgs = [configure("ce", preset="amix_cifar100", mixer="cutmix", arch=arch, weight_decay=decay)
            for arch, decay in (("resnet18", 1e-4), ("resnext50", 5e-4), ("resnext50", 1e-4))]
    found = [published_table(measured([cfg])).query("measured != ''").published.tolist() for cfg in cfgs]
    assert found == [[78.17], [78.32], []]   # ResNeXt-50 has five times the weight decay for mixers that cut


@pytest.mark.slow
def test_published_numbers_have_a_reason_where_nothing_stands_beside():
    "Every row of every paper."
    table = published_table(measured([configure()]))
    assert set(table.measured) == {""} and (table.why != "").all() and len(table) > 300
    assert set(table[table.published == "–"].why) == {"the paper gives none"}


# the report knows no paper, and trains nothing

def test_no_paper_by_name():
    "Neither a paper's module nor its title stands in the report's code."
    published = {name: paper for name, paper in papers().items() if paper.published}
    names = {*published, *(paper.title for paper in published.values())} - {"mixsupcon"}   # the package itself
    for path in (ROOT/"mixsupcon"/"report").glob("*.py"):
        words = set(re.findall(r"[\w-]+", path.read_text()))
        assert not words & names, path.name


def test_nothing_trains():
    "No function of the lab that trains is named in the report's code."
    for path in (ROOT/"mixsupcon"/"report").glob("*.py"):
        words = set(re.findall(r"\w+", path.read_text()))
        assert not words & {"pretrain", "Learner", "run_one", "run_all", "run_seeds", "run_missing"}, path.name


@pytest.mark.slow
def test_the_papers_report_without_runs(tmp_path):
    "Both scales' reports of nothing: all studies there, everything missing, and links that end."
    for scale in ("small", "paper"):
        made, drawings, out = write_report(scale, tmp_path/"none", tmp_path/scale)
        assert set(made.numbers.state) == {"missing"}
        assert {drawing.problem for drawing in drawings.values()} == {"no run is complete yet"}
        assert broken_links(out) == [] and not (out/ARCHIVE).exists()


# killed runs

def swept(root, kills=0):
    "All runs of the tiny study under `root`, by a process that is killed as many times; how often it was."
    done = subprocess.run([*WARM, tiny.__file__, root, str(kills)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def tables(root):
    "What the tiny study's folders say, without times."
    with tiny.scale():
        made = results("tiny", root=root)
    assert set(made.numbers.state) == {"complete"} and not made.foreign
    numbers = made.numbers[["row", "seed", "linear", "best test", "train", "knn5"]]
    return made.words["linear"][1].to_csv() + numbers.to_csv()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    "The tiny study's runs, made without a break."
    root = tmp_path_factory.mktemp("straight")
    assert swept(root) == 0
    return root


@pytest.mark.slow
def test_killed_between_and_inside_runs(straight, tmp_path):
    "kill -9 at nine random moments, most in training: the same tables as without, and no epoch lost or twice in a log."
    killed = tmp_path/"killed"
    assert swept(killed, 9) >= 5   # a fast machine is done before it was killed nine times
    assert tables(killed) == tables(straight)
    assert sorted(folder.name for folder in killed.iterdir()) == sorted(folder.name for folder in straight.iterdir())
    for log in killed.glob("*/log.jsonl"):
        assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, 21)), log


SNAKEFILE = """import sys
sys.path.insert(0, {programs!r})
sys.executable = {python!r}   # of the jobs
import tiny
tiny.enter()
include: 'Snakefile'
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the orphans under /proc")
def test_snakemake_killed_and_started_again(straight, project_copy):
    "The runner and a kernel of it killed in mid-run, the command given again: all complete, and then nothing to do."
    shutil.copy(ROOT/"Snakefile", project_copy)
    python = project_copy/"python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join(WARM)} "$@"\n')
    python.chmod(0o755)
    (project_copy/"tiny.smk").write_text(SNAKEFILE.format(programs=str(Path(tiny.__file__).parent), python=str(python)))
    words = "all -s tiny.smk --cores 2 --config scale=tiny --keep-going --rerun-incomplete --nolock".split()
    command = [*WARM, Path(sys.executable).with_name("snakemake"), *words, "--quiet", "rules", "reason", "host"]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    start = dict(cwd=project_copy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, **start)
    folder, until = project_copy/"outputs"/"runs", time.monotonic() + 120
    while not list(folder.glob("*/config.json")) and time.monotonic() < until:
        time.sleep(.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kernels = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
               if b"ipykernel" in path.read_bytes() and (path.parent/"cwd").resolve() == project_copy]
    assert kernels, "the runner is dead, its children are not"
    os.kill(kernels[0], signal.SIGKILL)
    again = subprocess.run(command, **start, timeout=400)
    assert again.returncode == 0, again.stdout[-2000:]
    assert tables(folder) == tables(straight)
    assert again.stdout.count("done ") >= 1
    third = subprocess.run(command, **start, timeout=100)
    assert third.returncode == 0 and "done " not in third.stdout


def test_features_that_are_moved_to_several_data_sets_have_a_number_on_each_and_their_mean(tmp_path, monkeypatch):
    targets = "digits_high", "digits"
    for name in targets:
        monkeypatch.setitem(NUMBERS, f"on {name}", (f"on {name}", "accuracy", "last"))
    result = experiment("simclr", tmp_path, dataset="digits_low", transfer=" ".join(targets), epochs=1, image_size=8,
                        train_images=50, batch_size=25, probe_epochs=2, device="cpu")
    numbers, rows = numbers_of(result.folder), read_json(result.folder/"metrics.json")["rows"]
    on = {name: [row["value"] for row in rows if row["protocol"].endswith(f" on {name}") and row["selection"] == "last"
                 and row["metric"] == "accuracy"] for name in targets}
    assert [[numbers[f"on {name}"]] for name in targets] == [*on.values()] and on["digits"] != on["digits_high"]
    assert numbers["elsewhere"] == sum(sum(values) for values in on.values())/2
    assert np.isnan(numbers["on food101"])
