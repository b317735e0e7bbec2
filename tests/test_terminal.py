"papermill as a user sees it in a terminal, with keys pressed: refusals, help, progress and Ctrl-C."
import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pexpect
import pytest
import torch
from mixsupcon.core.configure import configure, listed, recipes
from mixsupcon.core.methods import METHODS, all_owners
from mixsupcon.core.options import InTable, typed
from mixsupcon.lab.progress import WATCHING, Stopped
from mixsupcon.lab.runs import checkpoints, read_log
from mixsupcon.lab.train import load_net, pretrain
from warm import WARM, cold

PAPERMILL = Path(sys.executable).with_name("papermill")
NOTEBOOK = "nbs/run_experiment.ipynb"
SMALL = "-p image_size 8 -p probe_epochs 1 -p train_images 200 -p batch_size 20 -p save_seconds 1e9".split()
ENV = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | dict(OMP_NUM_THREADS="1")


def run(project, *words):
    "What papermill answers in a pipe."
    command = [*WARM, PAPERMILL, *words]
    return subprocess.run(command, cwd=project, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def in_terminal(project, *words, columns=100, env=ENV):
    "papermill in a pseudo-terminal, with keys to press."
    return pexpect.spawn(str(PAPERMILL), [NOTEBOOK, *words], cwd=str(project), env=env, encoding="utf-8", timeout=120,
                         dimensions=(24, columns))


def end(child):
    "What the terminal showed until the process ended, without control characters, and the exit status."
    child.expect(pexpect.EOF)
    child.close()
    return re.sub(r"\x1b\[K", "", child.before).replace("\r", "\n"), child.exitstatus


@pytest.mark.slow
@pytest.mark.parametrize("words, sentence", [
    ("-p method supcom", r"ConfigError: unknown method 'supcom' \(did you mean 'supcon'\?\)"),
    ("-p repeat 3", r"ConfigError: unknown option 'repeat': did you mean 'repeats'\?"),
    ("-p repeats few", r"ConfigError: repeats must be an int, not 'few'"),
    ("-p arch resnet9", r"ConfigError: unknown arch 'resnet9'"),
    ("-p method simclr -p siam_weight 0.3 out.ipynb", r"ConfigError: simclr has no siam_weight")])
def test_a_typo_is_refused_at_once(project_copy, words, sentence):
    "One line, exit 2, no file, no kernel and no torch: less than two seconds of work."
    before, spent = sorted(project_copy.rglob("*")), os.times().children_user
    done = subprocess.run([PAPERMILL, NOTEBOOK, *words.split()], cwd=project_copy, capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch(f"{sentence}.*\n", done.stderr), done.stderr[-1500:]
    assert sorted(project_copy.rglob("*")) == before
    assert os.times().children_user - spent < 2


def test_words_that_are_refused_without_torch_are_in_no_table():
    "The names that an option's type lists are all names of its table, so that no good one is refused."
    import_module("mixsupcon.core.models")
    kinds = {(name, kind) for owner in all_owners() for name, kind in typed(owner).items() if get_args(kind)}
    limits = {(name, limit) for name, kind in kinds for limit in get_args(kind)[1:] if isinstance(limit, InTable)}
    assert {"arch", "head", "optimizer"} <= {name for name, _ in limits}
    looked_into = "mixsupcon.core.recipe"   # is loaded with the options
    for name, limit in limits:
        if limit.module == looked_into:
            continue
        table = {*getattr(import_module(limit.module), limit.table)} - {""}
        assert len(limit.known) < 2 or table <= {*listed(name, limit)}, name


@pytest.mark.slow
def test_a_refusal_in_a_cell_is_one_sentence_too(project_copy):
    "Known only with the data: the executed notebook is there, with the sentence in it."
    done = run(project_copy, NOTEBOOK, *"-p dataset cifar10 -p data_dir nowhere".split())
    late = "KeyboardInterrupt caught in kernel"   # Jupyter's own, now and then, when it ends a kernel on a busy machine
    lines = [line for line in done.stderr.splitlines() if "otebook" not in line and late not in line]
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("DataError: CIFAR10 is not in"), done.stderr
    executed, = (project_copy/"outputs"/"notebooks").iterdir()
    assert "DataError" in executed.read_text() and "WARNING" not in done.stderr


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(project_copy):
    "Of the notebook, without papermill's own frames."
    notebook = json.loads((project_copy/NOTEBOOK).read_text())
    broken = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"][1]
    broken["source"] = ["numbers = []\n", "numbers[3]"]
    (project_copy/NOTEBOOK).write_text(json.dumps(notebook))
    done = run(project_copy, NOTEBOOK)
    assert done.returncode == 1 and "IndexError: list index out of range" in done.stderr
    assert "numbers[3]" in done.stderr and "papermill/execute.py" not in done.stderr


@pytest.mark.slow
def test_help_lists_methods_and_recipes(project_copy):
    done = run(project_copy, "--help-notebook", NOTEBOOK)
    listed = re.findall(r"^  (\w+)  +\S", done.stdout, re.M)
    assert done.returncode == 0 and {*METHODS, *recipes()} <= {*listed}
    assert re.search(r"^  seed: int \(default 0\) +of everything that is random$", done.stdout, re.M)
    other = run(project_copy, "--help-notebook", "nbs/tsne.ipynb")
    assert other.returncode == 0 and "  how: str" in other.stdout and "methods" not in other.stdout.split()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal(project_copy):
    "Stops after the epoch, in a sentence and with 130; run again, it continues there, and SIGTERM ends it likewise."
    words = [*SMALL, "-p", "epochs", "40"]
    child = in_terminal(project_copy, *words, env=cold(ENV))
    child.expect("epoch 2/40")
    child.sendintr()
    text, status = end(child)
    epoch = int(re.search(r"^stopped after epoch (\d+) of 40; run it again to continue$", text, re.M)[1])
    assert status == 130 and "Traceback" not in text and len(text.splitlines()) < 30
    folder, = (project_copy/"outputs"/"runs").iterdir()
    assert [row["epoch"] for row in read_log(folder)] == [*range(1, epoch + 1)] and len(checkpoints(folder)) == 1
    child = in_terminal(project_copy, *words)
    child.expect(f"resuming after epoch {epoch}")
    child.expect(r"epoch \d+/40 ")
    child.kill(signal.SIGTERM)   # as a cluster does, or `docker stop`
    text, status = end(child)
    assert status == 143 and re.search(r"^stopped after epoch \d+ of 40; run it again to continue$", text, re.M)


@pytest.mark.slow
def test_ctrl_c_in_a_long_epoch(project_copy):
    "Its steps are shown on a line as wide as the terminal; it stops at once, and nothing was saved yet."
    long = "-p epochs 300 -p arch resnet18 -p image_size 32 -p batch_size 16".split()
    child = in_terminal(project_copy, *long, columns=60)
    child.expect(r"epoch 1/300   step \d+/90   loss \d\.\d{4}   [\d,]+ views/s")
    child.expect(r"about [\d a-z]+ on this machine, at \d+ (s|min) an epoch; Ctrl-C stops it, the same command")
    child.expect(r"\r\x1b\[Kepoch 1/300   step [^\r\n]{10,42}\r\x1b\[K")   # cut, so that it can be rewritten
    child.sendintr()
    text, status = end(child)
    assert status == 130 and "stopped in epoch 1 of 300; run it again to start over\n" in text


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 5, 6])
def test_a_stopped_training_continues_to_the_same_bits(tiny, tmp_path, at):
    "Ctrl-C in the first, the middle and the last step of the second of three epochs: that epoch is saved."
    cfg = configure(epochs=3, batch_size=8, image_size=8, save_seconds=1e9, device="cpu")
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    steps = []

    def press(step):
        steps.append(step)
        if len(steps) == at:
            signal.raise_signal(signal.SIGINT)
    WATCHING.append(press)
    try:
        with pytest.raises(Stopped, match="stopped after epoch 2 of 3; run it again to continue"):
            pretrain(cfg, tiny, tmp_path/"stopped")
    finally:
        WATCHING.remove(press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and len(WATCHING) == 0
    folder = pretrain(cfg, tiny, tmp_path/"stopped")
    assert all(torch.equal(v, straight[name]) for name, v in load_net(folder).state_dict().items())
    assert [row["epoch"] for row in read_log(folder)] == [1, 2, 3]


@pytest.mark.slow
def test_a_pipe_gets_whole_lines_and_few(project_copy):
    "Sixty epochs: seven lines, none rewritten, no bar, no warning; the notebook keeps the last, and no picture of it."
    done = run(project_copy, NOTEBOOK, *SMALL, *"-p epochs 60 -p train_images 20".split())
    assert done.returncode == 0, done.stderr[-1500:]
    epochs = re.findall(r"epoch (\d+)/60 +loss [\d.]+ +[\d,]+ views/s +[\d:]+ left *\n", done.stderr)
    assert epochs[0] == "1" and epochs[-1] == "60" and 7 <= len(epochs) <= 9
    assert "Executing:" not in done.stderr and "WARNING" not in done.stderr and "\x1b" not in done.stderr
    executed, = (project_copy/"outputs"/"notebooks").iterdir()
    outputs = [output for cell in json.loads(executed.read_text())["cells"] for output in cell.get("outputs", [])]
    shown = [output["data"]["text/plain"] for output in outputs if "epoch 60/60" in str(output.get("data", {}))]
    assert len(shown) == 1 and not any("image/svg+xml" in output.get("data", {}) for output in outputs)
