"Reports: every number leads to its runs, nothing missing or odd is hidden, and nothing odd ends a report."
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
from mixsupcon.core.configure import Figure, Paper, Study, configure, papers
from mixsupcon.core.options import amended
from mixsupcon.lab.runs import read_config
from mixsupcon.report.page import write_report
from mixsupcon.report.statistics import holm
from mixsupcon.report.studies import Planned, find_runs, jobs, missing_runs, plan, run_key, write_example_run
from mixsupcon.report.tables import published_table, results

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


PAPER = dict(test=Paper(f"A test {EVIL}", EVIL, {}, two_studies, "MixSupCon"))


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
    "The ids, the links and the texts of a page."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.tags, self.texts, self.within = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, given):
        given = dict(given)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.within = [*self.within, given.get("id")] if tag == "ul" else self.within
        if "href" in given:
            self.links.append((self.within[-1] if self.within else None, given["href"]))

    def handle_endtag(self, tag):
        self.within = self.within[:-1] if tag == "ul" else self.within

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page(report):
    return Page((report[2]/"index.html").read_text())


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
    assert report[0].words["heat"][2].startswith("Below their bases: hot.")


def test_files_hold_the_tables(report):
    "CSV to six digits, Markdown and LaTeX with every row."
    made, _, out = report
    for name, table in made.tables.items():
        stored = pd.read_csv(out/"tables"/f"{name}.csv")
        assert np.allclose(stored.select_dtypes("number"), table.select_dtypes("number"), rtol=1e-5, equal_nan=True)
        for kind, mark in (("md", "| {} |"), ("tex", " {} ")):
            text = (out/"tables"/f"{name}.{kind}").read_text()
            assert all(mark.format(row) in text for row in table.row), (name, kind)
    stored = pd.read_csv(out/"tables"/"runs.csv")
    assert len(stored) == len(made.numbers) and stored.state.tolist() == made.numbers.state.tolist()


def test_same_folders_same_bytes(runs, report, tmp_path):
    "Tables, figures and page, written a second time."
    out = report[2]
    again = write_report("small", runs, out.with_name("again"), PAPER)[2]
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [name for name in files if (out/name).read_bytes() != (again/name).read_bytes()] == []


# the page

def test_what_is_missing_is_named(report, page):
    "The missing seed, the unfinished and the altered run, by folder and notebook; in the table how many seeds."
    made, _, out = report
    missing = missing_runs(made.numbers).set_index("state")
    linear = missing[missing.study == "linear"]
    assert linear.row.to_dict() == dict(missing="ce", unfinished="simclr", altered="supcon")
    assert linear.seeds.to_dict() == dict(missing="9", unfinished="3", altered="5")
    assert linear.folders["missing"] == ""
    assert {*linear.notebook, linear.folders["unfinished"], linear.folders["altered"]} <= {*page.texts}
    seeds = made.words["linear"][1].set_index("row").seeds.to_dict()
    assert seeds == dict(untrained="12", simclr="11 of 12", supcon="11 of 12", mixsupcon="12", ce="11 of 12")


def test_other_folders_are_named_with_their_reason(runs, report, page):
    "What no study needs, what is no run, what cannot be read; none of it in a table."
    foreign = {folder.name: reason for folder, reason in report[0].foreign.items()}
    assert len(foreign) == 8 and sum("no study" in reason for reason in foreign.values()) == 1
    for name, reason in foreign.items():
        assert f"{name}: {reason}" in page.texts and str(runs) not in reason


def test_runs_of_other_code_are_named(report, page):
    "A sentence under the table, and a note at the run."
    sentence = "One run was made by another version of core.losses.supcon."
    assert report[0].words["linear"][2].endswith(sentence) and "another version" not in report[0].words["heat"][2]
    assert sum("(other code: core.losses.supcon)" in text for text in page.texts) == 1


def test_every_cell_leads_to_its_runs(report, page):
    "Each link of a cell ends at one anchor; the runs behind it are the folders whose numbers went into the mean."
    made, _, out = report
    inside = [href[1:] for _, href in page.links if href.startswith("#")]
    assert len(page.ids) == len(set(page.ids)) and set(inside) <= set(page.ids)
    for name, (_, words, _) in made.words.items():
        if name not in made.studies:
            continue
        for row, mean in zip(words.row, made.tables[name]["linear mean"]):
            anchor = f"{name}-digits-{row}"
            assert inside.count(anchor) >= words.shape[1]
            folders = [(out/href).resolve().parent for within, href in page.links if within == anchor]
            assert np.isclose(100*np.mean([headline(folder) for folder in folders]), mean)


def test_links_to_files_end_at_files(report, page):
    "Figures as PNG and PDF, and the runs' records."
    out = report[2]
    files = [href for _, href in page.links if not href.startswith("#")]
    assert files and all((out/href).exists() for href in files)
    assert len(list((out/"figures").glob("*.png"))) == len(list((out/"figures").glob("*.pdf"))) == 7


def test_markup_from_folders_is_text(report, page):
    "A script in a folder's records, in a folder's name or in a paper's title never becomes a tag."
    assert "script" not in page.tags and "b" not in page.tags
    assert any(text.startswith("somebody's <b>notes") for text in page.texts) and EVIL in page.texts
    assert "<script" not in (report[2]/"index.html").read_text()


def test_fidelity_is_computed(runs, tmp_path):
    "What a folder says of its own fidelity is not believed."
    root = tmp_path/"runs"
    cfg = plan("small", papers=PAPER)[0].cfg
    folder = write_example_run(root, cfg, .9, finish=False)
    change(folder/"config.json", fidelity="paper", source="a paper")
    write_example_run(root, cfg, .9)
    _, _, out = write_report("small", root, tmp_path/"report", PAPER)
    text = (out/"index.html").read_text()
    assert "fidelity: changed." in text   # no epochs at all
    assert "a paper;" not in text and "fidelity: paper" not in text


# what counts as a run of the plan

FILES = "config.json", "linear.json", "knn.json", "training.json", "metrics.json", "log.jsonl", "net.safetensors"
ODD = "", "[]", "null", "{", "3", '"x"', "["*50_000, '{"rows": 3, "seals": {}}', '{"rows": [3]}', '{"net": NaN}'


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


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_jobs_have_distinct_names_and_all_runs(tmp_path, scale):
    "No two notebooks of a scale under one name; each planned run is made by one."
    runs, made = plan(scale), jobs(scale, tmp_path)
    keys = {run_key(run.cfg) for run in runs}
    assert not any(job.done for job in made.values())
    assert sum(job.parameters["repeats"] for job in made.values()) == len(keys)


# published numbers

RELEASED = [   # method, preset, data, measure, published numbers that may stand beside
    ("supcon", "supcontrast_readme", "cifar10", "MixSupCon", [96.0]),
    ("mocon_imix", "imix_cifar100", "cifar100", "i-Mix", [78.1]),
    ("moco_unmix", "moco_cifar", "cifar100", "Un-Mix", [67.33]),
    ("byol_unmix", "wmse_authors", "cifar100", "Un-Mix", [71.5, 63.83]),
    ("wmse4", "wmse_authors_stl10", "stl10", "Un-Mix", [91.75, 88.59])]


def measured(cfgs):
    "A table of made-up runs of these configurations."
    from mixsupcon.report.tables import NUMBERS
    rows = [dict(cfg=cfg, seed=cfg.seed, state="complete") | dict.fromkeys(NUMBERS, .5 + .1*cfg.seed) for cfg in cfgs]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("method, preset, data, paper, numbers", RELEASED)
def test_published_beside_the_same_recipe(method, preset, data, paper, numbers):
    "The mean over seeds, on another device too; a short run and a changed one are never beside."
    given = dict(method=method, preset=preset, dataset=data)
    runs = measured([configure(**given, seed=0), configure(**given, seed=1, device="cpu")])
    rows = published_table(runs).query("measured != ''")
    assert rows.published.tolist() == numbers and set(rows.paper) == {paper}
    assert set(rows.measured) == {"55.0 ± 7.1"}
    for other in (dict(epochs=10), dict(weight_decay=.01)):
        assert set(published_table(measured([configure(**given | other)])).measured) == {""}


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
        page = Page((out/"index.html").read_text())
        assert set(made.numbers.state) == {"missing"}
        assert {drawing.problem for drawing in drawings.values()} == {"no run is complete yet"}
        assert {href[1:] for _, href in page.links if href.startswith("#")} <= set(page.ids)


# killed runs

def swept(root, kills=0):
    "All runs of the tiny study under `root`, by a process that is killed as many times; how often it was."
    done = subprocess.run([sys.executable, tiny.__file__, root, str(kills)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def tables(root):
    "What the tiny study's folders say, without times."
    with tiny.scale():
        made = results("tiny", root=root)
    assert set(made.numbers.state) == {"complete"} and not made.foreign
    numbers = made.numbers[["row", "seed", "linear", "best test", "train", "knn5"]]
    return made.words["linear"][1].to_csv() + numbers.to_csv()


@pytest.mark.slow
def test_killed_between_and_inside_runs(tmp_path):
    "kill -9 at up to twenty random moments: the same tables as without, none lost, and no epoch twice in a log."
    straight, killed = tmp_path/"straight", tmp_path/"killed"
    assert swept(straight) == 0 and swept(killed, 20) >= 5   # a fast machine is done before it was killed twenty times
    assert tables(killed) == tables(straight)
    assert sorted(folder.name for folder in killed.iterdir()) == sorted(folder.name for folder in straight.iterdir())
    for log in killed.glob("*/log.jsonl"):
        assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, 41)), log


SNAKEFILE = """import sys
sys.path.insert(0, {programs!r})
import tiny
tiny.enter()
include: 'Snakefile'
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the orphans under /proc")
def test_snakemake_killed_and_started_again(project_copy):
    "The runner and a kernel of it killed in mid-run, the command given again: all complete, and then nothing to do."
    shutil.copy(ROOT/"Snakefile", project_copy)
    (project_copy/"tiny.smk").write_text(SNAKEFILE.format(programs=str(Path(tiny.__file__).parent)))
    words = "all -s tiny.smk --cores 2 --config scale=tiny --keep-going --rerun-incomplete --nolock".split()
    command = [Path(sys.executable).with_name("snakemake"), *words, "--quiet", "rules", "reason", "host"]
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
    assert swept(project_copy/"straight") == 0 and tables(folder) == tables(project_copy/"straight")
    assert again.stdout.count("done ") >= 1
    third = subprocess.run(command, **start, timeout=100)
    assert third.returncode == 0 and "done " not in third.stdout
