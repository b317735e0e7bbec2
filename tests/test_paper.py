"The paper's tables: from fixed folders as stored, from killed runs as from whole ones; nothing missing is hidden."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mixsupcon.config import configure
from mixsupcon.report import write_report
from mixsupcon.results import complete
from mixsupcon.runs import open_run, unlock, write_json
from mixsupcon.studies import found, plan
from mixsupcon.tables import results

ROOT, EXPECTED = Path(__file__).parents[1], Path(__file__).parent/"expected_report"


def pretend(root, cfg, value):
    "A run folder as training and evaluation leave it, with a made-up number."
    folder = open_run(cfg, "d", root)
    write_json(folder/"training.json", dict(epochs=80, images_seen=4000, passes=8000, seconds=3.5, net="a1"))
    row = dict(protocol="lin_supcontrast", metric="accuracy", value=value, n=360, selection="last")
    rows = [row, row | dict(selection="best_test", value=value + .01), row | dict(metric="train_accuracy", value=.995)]
    write_json(folder/"linear.json", dict(net="a1", rows=rows, curve=[value/2, value], confusion=[[9, 1], [2, 8]], classes=["a", "b"]))
    near = [dict(protocol=name, metric="accuracy", value=value - .02, n=360, selection="last") for name in ("knn5", "knn20")]
    write_json(folder/"knn.json", dict(net="a1", rows=near + [dict(protocol="features", metric="silhouette", value=.4, n=360, selection="last")]))
    (folder/"log.jsonl").write_text('{"epoch": 1, "loss": 3.0}\n{"epoch": 2, "loss": 1.5}\n')
    complete(folder), unlock(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Runs of the linear study and of two switches: a seed is missing, a run unfinished, a result altered, a folder foreign."
    root, noise = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    made = {}
    for planned in plan("small", ["linear", "switches"]):
        level = dict(untrained=.6, supcon=.88, simclr=.78, mixsupcon=.89, ce=.88).get(planned.row, {"default": .89, "C: instances": .8}.get(planned.row))
        if level and (planned.row, planned.seed) != ("ce", 9) and planned.cfg not in made:
            made[planned.cfg] = pretend(root, planned.cfg, round(level + noise.normal(0, .01), 4))
    of = {(planned.row, planned.seed): made.get(planned.cfg) for planned in plan("small", ["linear", "switches"])}
    (of["simclr", 3]/"metrics.json").unlink()
    linear = of["supcon", 5]/"linear.json"
    linear.write_text(linear.read_text().replace('"accuracy",\n   "value": 0.8', '"accuracy",\n   "value": 0.9', 1))
    pretend(root, configure(preset="few", tau=.5), .9)
    (root/"somebody's notes").mkdir()
    return root


def test_report_of_fixed_folders(folders, tmp_path):
    "Every table as stored, byte for byte; to accept a change, delete tests/expected_report and run this once."
    told, _, out = write_report("small", folders, tmp_path)
    wrote = {path.name: path.read_bytes() for path in (out/"tables").iterdir()}
    if not EXPECTED.exists():
        EXPECTED.mkdir()
        for name, data in wrote.items():
            (EXPECTED/name).write_bytes(data)
        pytest.fail("wrote a new expectation: look at it, and commit it if it is right")
    assert wrote.keys() == {path.name for path in EXPECTED.iterdir()}
    for name, data in wrote.items():
        assert data == (EXPECTED/name).read_bytes(), name


def test_what_is_missing_is_named(folders, tmp_path):
    "On the page: the missing seed, the unfinished and the altered run by folder, and both foreign folders; in the table how many seeds."
    told, _, out = write_report("small", folders, tmp_path)
    page = (out/"index.html").read_text()
    gone = page.split("What is missing")[1].split("</table>")[0]
    for state, row in (("missing", "ce"), ("unfinished", "simclr"), ("altered", "supcon")):
        part = told.values[(told.values.study == "linear") & (told.values.state == state)]
        assert part.row.tolist() == [row] and f"<td>{state}</td>" in gone
        assert part.folder.isna().all() if state == "missing" else part.folder.iloc[0].name in gone
    others = page.split("Other folders")[1]
    assert "somebody&#x27;s notes" in others and len(told.foreign) == 2 and all(f.name.replace("'", "&#x27;") in others for f in told.foreign)
    seeds = told.words["linear"][1].set_index("row").seeds.to_dict()
    assert seeds == {"untrained": "16", "supcon": "15 of 16", "simclr": "15 of 16", "mixsupcon": "16", "ce": "15 of 16"}
    assert told.words["switches"][1].set_index("row").seeds["A: global denominator"] == "0 of 16"


def test_every_cell_leads_to_its_runs(folders, tmp_path):
    "Each link of a cell ends at an anchor, and each run behind it is a folder with the number that went into the mean."
    told, _, out = write_report("small", folders, tmp_path)
    page = (out/"index.html").read_text()
    links = {part.split("'")[0] for part in page.split("<a href='#")[1:]}
    assert links and all(page.count(f"id='{link}'") == 1 for link in links)
    for (study, row), part in told.values[told.values.state == "complete"].groupby(["study", "row"]):
        block = page.split(f"({study}): ")
        block = next(b for b, name in zip(block[1:], block) if name.endswith(f">{row}, digits "))
        block = block.split("</details>")[0]
        values = []
        for run in part.itertuples():
            assert run.folder.name in block
            where = block.split(f"seed {run.seed}: ")[1].split("<a href='")[1].split("'")[0]
            assert (out/where).resolve() == run.folder/"config.json"
            values.append(next(r["value"] for r in json.loads((run.folder/"linear.json").read_text())["rows"]))
        assert np.isclose(100*np.mean(values), told.tables[study].set_index("row").loc[row, "linear mean"])


@pytest.mark.parametrize("name", ["config.json", "linear.json", "knn.json", "training.json", "metrics.json"])
def test_a_changed_byte_is_noticed(folders, tmp_path, name):
    "Whichever of a run's records is changed, the run leaves the tables."
    root = shutil.copytree(folders, tmp_path/"runs")
    folder = next(row.folder for row in found(plan("small", ["linear"]), root)[0].itertuples() if row.state == "complete")
    text = (folder/name).read_text()
    changed = text.replace('"alpha": 1.0', '"alpha": 4.0').replace('"confusion": [', '"confusion": [ ') if name in ("config.json", "linear.json") else text.replace("0.", "0.1", 1)
    changed = text.replace("80", "81", 1) if changed == text else changed
    assert changed != text
    (folder/name).write_text(changed)
    table = found(plan("small", ["linear"]), root)[0]
    assert "complete" not in table[table.folder == folder].state.tolist()


def swept(root, kills=0):
    "All runs of the tiny study under `root`, by a process that is killed as many times; how often it was."
    done = subprocess.run([sys.executable, Path(__file__).with_name("tiny.py"), root, str(kills)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def tables(root):
    "What the tiny study's folders say, without times."
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny
    with tiny.scale():
        told = results("tiny", root=root)
    assert (told.values.state == "complete").all() and told.foreign == []
    return told.words["linear"][1].to_csv() + told.values[["row", "seed", "linear", "best test", "train", "knn5"]].to_csv()


def test_killed_between_and_inside_runs(tmp_path):
    "kill -9 at up to twenty random moments: the same tables as without, none lost, and no epoch twice in a log."
    straight, killed = tmp_path/"straight", tmp_path/"killed"
    assert swept(straight) == 0 and swept(killed, 20) >= 5   # a fast machine is done before it was killed twenty times
    assert tables(killed) == tables(straight)
    runs = lambda root: sorted(folder.name for folder in root.iterdir())
    assert runs(killed) == runs(straight)
    for log in killed.glob("*/log.jsonl"):
        assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, 41)), log


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the orphans under /proc")
def test_snakemake_killed_and_started_again(tmp_path):
    "The runner and one of its kernels killed by -9 in mid-run, the command given again: every run complete, and then nothing is left to do."
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs", ignore=shutil.ignore_patterns("[0-9]*", ".ipynb_checkpoints"))
    for name in ("settings.ini", "Snakefile"):
        shutil.copy(ROOT/name, tmp_path)
    (tmp_path/"tiny.smk").write_text(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport tiny; tiny.enter()\ninclude: 'Snakefile'\n")
    command = [Path(sys.executable).with_name("snakemake"), *"all -s tiny.smk --cores 2 --config scale=tiny --keep-going --rerun-incomplete --nolock --quiet rules reason host".split()]
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    start = dict(cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, **start)
    runs, until = tmp_path/"outputs"/"runs", time.monotonic() + 120
    while not list(runs.glob("*/config.json")) and time.monotonic() < until:
        time.sleep(.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kernels = [int(place.parent.name) for place in Path("/proc").glob("[0-9]*/cmdline")
               if b"ipykernel" in place.read_bytes() and (place.parent/"cwd").resolve() == tmp_path]
    assert kernels, "the runner is dead, its children are not"
    os.kill(kernels[0], signal.SIGKILL)
    again = subprocess.run(command, **start, timeout=400)
    assert again.returncode == 0, again.stdout[-2000:]
    assert swept(tmp_path/"straight") == 0 and tables(runs) == tables(tmp_path/"straight")
    assert again.stdout.count("done ") >= 1
    third = subprocess.run(command, **start, timeout=100)
    assert third.returncode == 0 and "done " not in third.stdout
