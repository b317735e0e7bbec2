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
from warm import WARM, cold

ROOT, PAPERMILL = Path(__file__).parents[1], Path(sys.executable).with_name("papermill")
COMMAND = [PAPERMILL, "nbs/run_experiment.ipynb", "-p", "method", "mixsupcon"]
EXECUTED = "outputs/notebooks/run_experiment-method=mixsupcon.ipynb"
QUICK = "-p epochs 1 -p probe_epochs 2 -p image_size 8 -p batch_size 256".split()


@pytest.fixture
def project(project_copy):
    return project_copy


def run(project, *words, stdin=subprocess.DEVNULL, python=WARM):
    "What papermill answers; with `python=()` it and its kernel are started as a user starts them."
    env = dict(os.environ) if python else cold()
    env.pop("PYTEST_CURRENT_TEST", None)   # a kernel that sees it does not pass on its standard error
    command = [*python, PAPERMILL, *words]
    return subprocess.run(command, cwd=project, env=env, stdin=stdin, capture_output=True, text=True)


def in_a_terminal(project, command):
    parent, child = pty.openpty()
    done = subprocess.run(command, cwd=project, stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.close(parent)
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("where", ["terminal", "pipe", "fifo", "file"])
def test_the_command_as_written(project, where):
    "Exit 0 and the executed notebook in its place, however input and output are connected; the source is left alone."
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


@pytest.mark.slow
def test_an_output_path_is_respected(project):
    (project/"outputs").mkdir()   # papermill makes no folders
    assert run(project, *COMMAND[1:2], "outputs/{method}.ipynb", *COMMAND[2:], "--prepare-only").returncode == 0
    assert (project/"outputs"/"mixsupcon.ipynb").exists() and not (project/EXECUTED).exists()


@pytest.mark.slow
def test_help_lists_every_parameter():
    "With its type, its default and its comment."
    done = run(ROOT, "--help-notebook", "nbs/run_experiment.ipynb")
    assert done.returncode == 0
    for name in ("method", "dataset", "preset", "seed", "epochs", "lr", "mixer", "probe", "device", "repeats"):
        assert re.search(rf"^  {name}: \w+ \(default \S+\)\s+\S", done.stdout, re.M), name


def test_the_notebook_names_every_method_and_recipe():
    "Its two tables hold them all, and nothing that is not there."
    from mixsupcon.core.configure import recipes
    from mixsupcon.core.methods import METHODS
    cells = json.loads((ROOT/"nbs"/"run_experiment.ipynb").read_text())["cells"]
    table = "\n".join(line for cell in cells for line in "".join(cell["source"]).splitlines() if line.startswith("|"))
    assert {*re.findall(r"`(\w+)`", table)} == {*METHODS, *recipes()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A project in which the command has run once: the project, what papermill said, and the run folder."
    root = tmp_path_factory.mktemp("project")
    (root/"nbs").mkdir()
    for path in [*(ROOT/"nbs").glob("*.ipynb"), ROOT/"settings.ini"]:
        (root/path.relative_to(ROOT)).write_bytes(path.read_bytes())
    first = run(root, *COMMAND[1:], *QUICK, python=())
    assert first.returncode == 0, first.stderr[-2000:]
    folder, = (root/"outputs"/"runs").iterdir()
    return root, first, folder


@pytest.mark.slow
def test_a_whole_run_is_complete(finished):
    "Every number, every figure, in one folder."
    _, _, folder = finished
    metrics = json.loads((folder/"metrics.json").read_text())
    assert {row["protocol"] for row in metrics["rows"]} == {"lin_supcontrast", "knn5", "knn20", "knn200", "features"}
    figures = {"curves.png", "tsne.png", "confusion.png", "views.png"}
    records = {"config.json", "env.json", "log.jsonl", "encoder.safetensors"}
    assert records | figures <= {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_the_terminal_ends_with_table_and_paths(finished):
    _, first, folder = finished
    assert re.search(r"epoch 1/1 +loss [\d.]+ +[\d,]+ views/s +0:00 left", first.stderr)
    for text in ("lin_supcontrast", f"run folder         outputs/runs/{folder.name}", f"{folder.name}/tsne.png",
                 "notebook           outputs/notebooks/run_experiment-method=mixsupcon"):
        assert text in first.stderr, text


@pytest.mark.slow
def test_the_executed_notebook_shows_four_figures(finished):
    notebook, = (finished[0]/"outputs"/"notebooks").glob("run_experiment*")
    shown = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4


@pytest.mark.slow
def test_a_finished_run_is_loaded_and_not_repeated(finished):
    root, _, folder = finished
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.suffix in (".json", ".jsonl", ".png")}
    again = run(root, *COMMAND[1:], *QUICK)
    assert again.returncode == 0 and "epoch 1/1" not in again.stderr and "lin_supcontrast" in again.stderr
    assert {name: (folder/name).stat().st_mtime_ns for name in before} == before   # pictures are not drawn again either


@pytest.mark.slow
def test_another_probe_of_the_same_run(finished):
    "The other notebooks find that run."
    root, _, folder = finished
    probe = run(root, "nbs/linear_eval.ipynb", *"-p probe_lr 1.0 -p probe_epochs 2".split())
    assert probe.returncode == 0, probe.stderr[-2000:]
    assert re.search(r"another +lin_supcontrast +1\.0000", probe.stderr) and len([*folder.glob("linear*.json")]) == 2
    whose = "probing MixSupCon on digits: resnet8, 1 epoch, seed 0, trained "
    assert whose in probe.stderr and f"run folder outputs/runs/{folder.name}, the latest" in probe.stderr
    notebook, = (root/"outputs"/"notebooks").glob("linear_eval*")
    assert whose in notebook.read_text() and probe.stderr.index(whose) < probe.stderr.index("another")


@pytest.mark.slow
def test_a_map_of_the_same_run(finished):
    root, _, folder = finished
    seen = run(root, "nbs/tsne.ipynb")
    assert seen.returncode == 0, seen.stderr[-2000:]
    assert folder.name in seen.stderr and "outputs/tsne-digits.png" in seen.stderr
    assert (root/"outputs"/"tsne-digits.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comparison", "ablation"])
def test_nothing_is_trained_unless_asked(project, name):
    "What is missing is listed with its commands, and figures say why there are none."
    done = run(project, f"nbs/{name}.ipynb")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (project/"outputs"/"runs").exists() and "epoch 1/" not in done.stderr
    assert re.search(r"^\W*0 of \d+ planned runs are complete; nothing is trained", done.stderr, re.M)
    assert f"papermill nbs/{name}.ipynb -p scale small -p missing run" in done.stderr
    text = (project/"outputs"/"notebooks"/f"{name}.ipynb").read_text()
    assert "papermill nbs/run_experiment.ipynb -p " in text and text.count('"image/png"') >= 2


@pytest.mark.slow
def test_published_records_stand_in(project):
    "In a fresh clone the comparison is drawn from the records of the report that comes with it."
    shutil.copytree(ROOT/"outputs"/"report"/"small", project/"outputs"/"report"/"small")
    done = run(project, "nbs/comparison.ipynb")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "runs are shown from the last report's records, which hold no weights" in done.stderr
    assert "0 of" not in done.stderr and not (project/"outputs"/"runs").exists()


@pytest.mark.slow
def test_a_run_that_is_not_there(finished):
    wrong = run(finished[0], "nbs/linear_eval.ipynb", "-p", "run", "nowhere")
    assert wrong.returncode != 0 and "RunError: no run 'nowhere' in outputs/runs" in wrong.stderr


@pytest.mark.slow
@pytest.mark.parametrize("given, sentence", [
    ("-p epohcs 3", r"ConfigError: unknown option 'epohcs': did you mean 'epochs'\?"),
    ("-p epochs many", r"ConfigError: epochs must be an int, not 'many'"),
    ("-p method supcom", r"ConfigError: unknown method 'supcom' \(did you mean 'supcon'\?\)"),
    ("-p method simclr -p siam_weight 0.3", r"ConfigError: simclr has no siam_weight, it is an option of MixSiam"),
    ("-p dataset cifar10 -p data_dir nowhere", r"DataError: CIFAR10 is not in .*: pass -p download missing"),
], ids=["name", "type", "method", "owner", "data"])
def test_bad_parameters(project, given, sentence):
    "One sentence, a non-zero exit, no traceback of ours, and nothing left behind."
    done = run(project, "nbs/run_experiment.ipynb", *given.split())
    assert done.returncode != 0
    assert re.search(sentence, done.stderr), done.stderr[-1500:]
    assert "mixsupcon/core" not in done.stderr and not (project/"outputs"/"runs").exists()


@pytest.mark.parametrize("given, sentence", [
    (dict(method=5), "unknown method 5"), (dict(epochs=-1), "epochs must lie between"),
    (dict(epochs="3"), "epochs must be an int"), (dict(alpha=0.), "alpha must be above 0"),
    (dict(alpha=-1), "alpha must lie"),
    (dict(alpha=float("nan")), "alpha must be finite"), (dict(tau=0), "tau must lie"),
    (dict(dataset="mnist"), "unknown dataset 'mnist'"), (dict(mixer="mixdown"), "unknown mixer"),
    (dict(arch="resnet9"), "unknown arch"), (dict(batch_size=0), "batch_size must lie"),
    (dict(seed=1.5), "seed must be an int"), (dict(device="gpu"), "unknown device"),
    (dict(download=True), "unknown download True"), (dict(preset="table4"), "unknown preset"),
    (dict(schedule="step", milestones="7 8 9"), "milestones are shares"),
    (dict(method="supcon", mixer="mixup"), "supcon has no mixer")])
def test_every_other_bad_parameter(given, sentence, tmp_path):
    "Each is refused before a folder is made."
    from mixsupcon.core.configure import configure
    from mixsupcon.core.options import Refusal
    from mixsupcon.lab.data import load_data
    from mixsupcon.lab.train import pretrain
    with pytest.raises(Refusal, match=sentence) as caught:
        cfg = configure(**given)
        pretrain(cfg, load_data(cfg), tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
