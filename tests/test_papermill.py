"The notebooks as users run them: papermill, in a terminal, in a pipe, with good and with bad parameters."
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT, PAPERMILL = Path(__file__).parents[1], Path(sys.executable).with_name("papermill")
COMMAND = [PAPERMILL, "nbs/run_experiment.ipynb", "-p", "method", "mixsupcon"]
EXECUTED = "outputs/notebooks/run_experiment-method=mixsupcon.ipynb"
QUICK = "-p epochs 1 -p probe_epochs 2 -p image_size 8 -p batch_size 256".split()


@pytest.fixture
def project(tmp_path):
    "A project of its own: what runs there leaves nothing here."
    shutil.copytree(ROOT/"nbs", tmp_path/"nbs", ignore=shutil.ignore_patterns("[0-9]*", ".ipynb_checkpoints"))
    shutil.copy(ROOT/"settings.ini", tmp_path)
    return tmp_path


def run(project, *words, stdin=subprocess.DEVNULL):
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}   # a kernel that sees it keeps its standard error to itself
    return subprocess.run([PAPERMILL, *words], cwd=project, env=env, stdin=stdin, capture_output=True, text=True)


def in_a_terminal(project, command):
    parent, child = pty.openpty()
    done = subprocess.run(command, cwd=project, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.close(parent)
    return done.returncode


@pytest.mark.parametrize("where", ["terminal", "pipe", "fifo", "file"])
def test_the_command_as_written(project, where):
    "Exit 0 and the executed notebook in its place, however standard input and output are connected; the source is left alone."
    before = (project/"nbs"/"run_experiment.ipynb").read_bytes()
    command = [*COMMAND, "--prepare-only"]   # all but the cells
    if where == "terminal":
        code = in_a_terminal(project, command)
    elif where == "fifo":
        code = subprocess.run(command, cwd=project, stdin=subprocess.PIPE, capture_output=True).returncode
    elif where == "file":
        with open(ROOT/"settings.ini") as file:
            code = run(project, *command[1:], stdin=file).returncode
    else:
        done = run(project, *command[1:])
        code = done.returncode
        assert done.stdout == "", "a notebook on standard output"
    assert code == 0
    assert r'method = \"mixsupcon\"' in (project/EXECUTED).read_text()
    assert (project/"nbs"/"run_experiment.ipynb").read_bytes() == before


def test_an_output_path_is_respected(project):
    (project/"outputs").mkdir()   # papermill makes no folders
    assert run(project, *COMMAND[1:2], "outputs/{method}.ipynb", *COMMAND[2:], "--prepare-only").returncode == 0
    assert (project/"outputs"/"mixsupcon.ipynb").exists() and not (project/EXECUTED).exists()


def test_help_lists_every_parameter():
    from dataclasses import fields

    from mixsupcon.config import Config
    said = run(ROOT, "--help-notebook", "nbs/run_experiment.ipynb")
    assert said.returncode == 0
    for field in fields(Config):
        assert re.search(rf"^  {field.name}: {field.type.__name__} \(default \S+\)\s+\S", said.stdout, re.M), field.name


def test_a_whole_run_twice(project):
    "One run folder, complete; the second time nothing is computed again; the terminal ends with table and paths."
    first = run(project, *COMMAND[1:], *QUICK)
    assert first.returncode == 0, first.stderr[-2000:]
    folder, = (project/"outputs"/"runs").iterdir()
    metrics = json.loads((folder/"metrics.json").read_text())
    assert {row["protocol"] for row in metrics["rows"]} == {"lin_supcontrast", "knn5", "knn20", "knn200", "features"}
    assert {"config.json", "env.json", "log.jsonl", "encoder.safetensors", "curves.png", "tsne.png", "confusion.png", "views.png"} <= {p.name for p in folder.iterdir()}
    assert re.search(r"epoch 1/1 +loss [\d.]+ +[\d,]+ views/s +0:00 left", first.stderr)
    for said in ("lin_supcontrast", f"run folder         outputs/runs/{folder.name}", f"{folder.name}/tsne.png", "notebook           outputs/notebooks/run_experiment-method=mixsupcon"):
        assert said in first.stderr
    notebook, = (project/"outputs"/"notebooks").iterdir()
    shown = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json*")}
    again = run(project, *COMMAND[1:], *QUICK)
    assert again.returncode == 0 and "trained before" in again.stderr
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.json*")} == kept
    probe = run(project, "nbs/linear_eval.ipynb", *"-p probe_lr 1.0 -p probe_epochs 2".split())   # the other notebooks find that run
    assert probe.returncode == 0 and re.search(r"another +lin_supcontrast +1\.0000", probe.stderr) and len(list(folder.glob("linear*.json"))) == 2
    seen = run(project, "nbs/tsne.ipynb")
    assert seen.returncode == 0 and folder.name in seen.stderr and "outputs/tsne-digits.png" in seen.stderr
    assert (project/"outputs"/"tsne-digits.png").stat().st_size > 10_000
    wrong = run(project, "nbs/linear_eval.ipynb", "-p", "run", "nowhere")
    assert wrong.returncode != 0 and "RunError: no trained run 'nowhere'" in wrong.stderr


@pytest.mark.parametrize("given,said", [
    ("-p epohcs 3", r"ConfigError: unknown parameter 'epohcs' \(did you mean 'epochs'\?\)"),
    ("-p epochs many", r"ConfigError: epochs must be an int, not 'many'"),
    ("-p method supcom", r"ConfigError: unknown method 'supcom' \(did you mean 'supcon'\?\)"),
    ("-p dataset cifar10 -p data_dir nowhere", r"DataError: CIFAR10 is not in .*: pass -p download missing"),
], ids=["name", "type", "method", "data"])
def test_bad_parameters(project, given, said):
    "One sentence, a non-zero exit, no traceback of ours, and nothing left behind."
    done = run(project, "nbs/run_experiment.ipynb", *given.split())
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr[-1500:]
    assert "mixsupcon/config.py" not in done.stderr and not (project/"outputs"/"runs").exists()


@pytest.mark.parametrize("given,said", [
    (dict(method=5), "method must be a str"), (dict(epochs=-1), "epochs must lie between"), (dict(epochs="3"), "epochs must be an int"),
    (dict(alpha=0.), "alpha must lie"), (dict(alpha=-1), "alpha must lie"), (dict(alpha=float("nan")), "alpha must be finite"),
    (dict(tau=0), "tau must lie"), (dict(dataset="mnist"), "unknown dataset 'mnist'"), (dict(mixer="mixdown"), "unknown mixer"),
    (dict(arch="resnet9"), "unknown arch"), (dict(batch_size=0), "batch_size must lie"), (dict(seed=1.5), "seed must be an int"),
    (dict(device="gpu"), "unknown device"), (dict(download=True), "download must be a str"), (dict(preset="table4"), "unknown preset"),
    (dict(milestones="7 8 9"), "shares of the epochs"), (dict(method="supcon", mixer="mixup"), "supcon does not mix")])
def test_every_other_bad_parameter(given, said, tmp_path):
    "Each is refused before a folder is made."
    from mixsupcon.config import Refusal, configure
    from mixsupcon.data import load_data
    from mixsupcon.train import pretrain
    with pytest.raises(Refusal, match=said) as caught:
        cfg = configure(**given)
        pretrain(cfg, load_data(cfg), tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
