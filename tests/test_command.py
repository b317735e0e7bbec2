"`python -m mixsupcon`: runs are listed, filtered, compared and deleted as asked, and nothing else happens to them."
import csv
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import PLUGINS, Refusal, identity
from mixsupcon.lab import command, runs
from mixsupcon.lab.extend import load_plugin

ROOT = Path(__file__).parents[1]
PYTHON = [sys.executable, "-m", "mixsupcon"]
CONFIGS = [dict(method="supcon"), dict(method="supcon", tau=.2), dict(method="moco_imix", seed=1),
           dict(method="mixsupcon", alpha=.5, epochs=7)]


@pytest.fixture
def root(fake_run, tmp_path):
    "Four complete runs, and one that stopped."
    for i, given in enumerate(CONFIGS):
        fake_run(value=.5 + i/10, **given)
    stopped = runs.open_run(configure("simclr"), "d", tmp_path/"runs")
    runs.log(stopped, dict(epoch=1, loss=1.))
    runs.unlock(stopped)
    return tmp_path/"runs"


def out(capsys, *words):
    "What a command prints, which must succeed."
    assert command.main([*map(str, words)]) == 0
    return capsys.readouterr().out


def saved(folder):
    return json.loads((folder/"config.json").read_text())["config"]


def tree(folder):
    "Everything below a folder, links not followed."
    return {str(path): path.lstat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name != ".lock"}


# ---- which runs

def test_a_filter_is_the_option_that_was_saved(root):
    "For every option and every value that occurs: exactly the runs whose config.json has it."
    every = command.read_runs(root)
    assert len(every) == 5
    for name in {name for run in every for name in saved(run.folder)} - {"revisions"}:
        for value in {saved(run.folder).get(name, "none") for run in every} - {""}:
            having = {run.name for run in every if saved(run.folder).get(name) == value and name in saved(run.folder)}
            if having and "," not in str(value):
                assert {run.name for run in command.chosen(every, {name: value})} == having, (name, value)


def test_filters_together_are_an_intersection(root):
    every = command.read_runs(root)
    both = {run.name for run in command.chosen(every, dict(method="*supcon", epochs="7,8"))}
    apart = [{run.name for run in command.chosen(every, one)} for one in (dict(method="*supcon"), dict(epochs="7,8"))]
    assert both == apart[0] & apart[1] and len(both) == 1


def test_the_newest_come_first(root):
    for age, folder in enumerate(runs.all_folders(root)):
        for path in folder.iterdir():
            os.utime(path, (10**9 - 86400*age,)*2)
    names = [run.name for run in command.read_runs(root)]
    assert names == [folder.name for folder in runs.all_folders(root)]
    days = f"{(time.time() - 10**9)/86400 + 1.5}d"
    assert [run.name for run in command.select_runs({}, days, root=root)] == names[:2]


def test_three_forms_of_the_same_rows(root, capsys):
    "JSON, CSV and text agree; in a pipe nothing is cut."
    rows = json.loads(out(capsys, "runs", "--root", root, "--json"))
    table = list(csv.DictReader(io.StringIO(out(capsys, "runs", "--root", root, "--csv"))))
    text = out(capsys, "runs", "--root", root).splitlines()[1:]
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == table and len(rows) == 5
    for row, line in zip(rows, text, strict=True):
        assert line.startswith(row["run"]) and f"{row['epochs_done']}/{row['epochs']}" in line
        assert row["linear"] is None or f"{row['linear']:.4f}" in line


def test_states(root, capsys):
    "Complete, unfinished, in use by another process, altered, unreadable."
    every = {run.options["method"]: run for run in command.read_runs(root)}
    (root/"strange").mkdir()
    (root/"strange"/"config.json").write_text('{"config": {"method": "of a plugin", "seed": 3}}')
    hold = "import pathlib, sys; from mixsupcon.lab.runs import lock; lock(pathlib.Path(sys.argv[1])); " \
           "print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", hold, every["simclr"].folder], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    (every["moco_imix"].folder/"linear.json").write_text("{}")
    rows = {row["method"]: row for row in json.loads(out(capsys, "runs", "--root", root, "--json"))}
    holder.communicate()
    assert {name: row["state"] for name, row in rows.items()} == {
        "supcon": "complete", "mixsupcon": "complete", "simclr": "in use", "moco_imix": "altered",
        "of a plugin": "unreadable"}
    assert rows["moco_imix"]["linear"] is None, "a number of altered files"
    assert command.Run(every["simclr"].folder).state == "unfinished"


@pytest.fixture
def own_method(tmp_path):
    "A file of a method of one's own; what it adds is taken away again by the function that it comes with."
    path, before = tmp_path/"mine.py", dict(METHODS)
    path.write_text("from mixsupcon import register\nfrom mixsupcon.core.goals import SimCLR\n"
                    "class Mine(SimCLR):\n    tau = .3\nregister('mine', goal=Mine)\n")

    def forget():
        METHODS.clear()
        METHODS.update(before)
        PLUGINS.clear()
        sys.modules.pop("plugin_mine", None)
    yield path, forget
    forget()


@pytest.mark.slow
def test_runs_of_own_methods(own_method, fake_run, tmp_path, capsys):
    "Without their file they are listed, and say which it is; with it they are complete; changed, they are altered."
    path, forget = own_method
    load_plugin(path)
    words = ["--root", fake_run(method="mine").parent]
    forget()
    row, = json.loads(out(capsys, "runs", *words, "--json"))
    assert (row["method"], row["state"], row["linear"]) == ("mine", "unreadable", None)
    assert "mine.py" in out(capsys, "runs", "show", "mine", "--quick", *words)
    assert json.loads(out(capsys, "runs", *words, "--json", "--plugin", path))[0]["state"] == "complete"
    forget()
    path.write_text(path.read_text().replace(".3", ".4"))
    text = out(capsys, "runs", "show", "mine", "--quick", *words, "--plugin", path)
    assert "altered" in text and "Mine of plugin_mine has changed since" in text


def test_weights_are_read_when_asked_or_when_they_are_new(root):
    "A bit that flips on the disk leaves the times as they were: only `check` sees it."
    folder = next(run.folder for run in command.read_runs(root) if run.state == "complete")
    path = folder/"encoder.safetensors"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    later = (folder/"metrics.json").stat().st_mtime_ns + 10**9
    os.utime(path, ns=times)
    assert command.Run(folder).state == "complete" and command.Run(folder, check=True).state == "altered"
    os.utime(path, ns=(later, later))
    assert command.Run(folder).state == "altered"


def test_a_run_without_a_linear_probe_is_shown(root, capsys):
    "As of unlabelled images: its accuracy is empty, and all else is there."
    folder = next(run.folder for run in command.read_runs(root) if run.state == "complete")
    metrics = json.loads((folder/"metrics.json").read_text())
    row = dict(protocol="features", metric="uniformity", value=-2.5, n=9, selection="last")
    net = metrics["net"]
    for name in ("linear", "knn", "metrics"):
        (folder/f"{name}.json").unlink()
    (folder/"features.json").write_text(json.dumps(dict(net=net, rows=[row])))
    runs.seal(folder, ["features"])
    run = command.Run(folder)
    assert run.state == "complete" and command.row_of(run)["linear"] is None
    assert command.compared([run])[0]["uniformity"] == -2.5
    for words in (["runs"], ["runs", "show", folder.name, "--quick"], ["runs", "compare", folder.name]):
        assert folder.name in out(capsys, *words, "--root", root)


def test_torch_and_pandas_are_not_imported(root):
    code = f"import sys; from mixsupcon.lab.command import main; main(['runs', '--root', {str(root)!r}]); " \
           "print(sorted({'torch', 'pandas', 'matplotlib', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]" and len(done.stdout.splitlines()) == 7


# ---- comparison

def test_comparison_shows_what_differs_and_nothing_else(root):
    "Of every pair: an option has a column exactly if its saved values differ."
    every = command.read_runs(root)
    for a in every:
        for b in every:
            row, other = command.compared([a, b])
            mine, theirs = saved(a.folder), saved(b.folder)
            unlike = {k for k in mine.keys() | theirs.keys() if mine.get(k, "missing") != theirs.get(k, "missing")}
            assert {*row} & (mine.keys() | theirs.keys()) == unlike - {"revisions"}
            assert row.keys() == other.keys()
            linear = {name: r["linear"] for name, r in ((x.name, command.row_of(x)) for x in (a, b))}
            assert row.get("lin_supcontrast") == linear[a.name] or a.options["probe"] != "lin_supcontrast"


def test_disk_use_adds_up(root, capsys):
    "Over any grouping: the bytes of all files below the folders."
    total = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file())
    for by in ("method,data", "state", "seed", "arch,method"):
        rows = json.loads(out(capsys, "runs", "disk", "--by", by, "--root", root, "--json"))
        assert sum(row["bytes"] for row in rows) == total and sum(row["runs"] for row in rows) == 5


# ---- names

def test_any_part_of_a_name_that_no_other_has(root):
    for folder in runs.all_folders(root):
        assert runs.find_folder(folder.name[-6:], root) == runs.find_folder(f"{folder}/", root) == folder
    with pytest.raises(Refusal, match="fits 2 runs .* give more of the name"):
        runs.find_folder("supcon-", root)
    with pytest.raises(Refusal, match="did you mean 'simclr-digits"):
        runs.find_folder("simclr-digit-resnet8-s0", root)


HOSTILE = ["<script>alert(1)</script>", "$(reboot)", "a b", "../../etc", "猫と犬", "x"*300, "\x1b[31mred", "-rf", "."]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_run_is_named_after_its_folder_of_images(name, tmp_path):
    "Whatever that is called, the name is a plain word of its own in `root`, and the identity is another's in nothing."
    cfg = configure("simclr", dataset="folder", data_dir=str(tmp_path/name))
    folder = runs.run_folder(cfg, "d", tmp_path)
    assert folder.parent == tmp_path and len(folder.name.encode()) <= 255
    assert folder.name.endswith(identity(cfg, "d")[:12]) and folder.name.startswith("simclr-")
    assert all(c.isalnum() or c in "-_." for c in folder.name)
    runs.open_run(cfg, "d", tmp_path)
    runs.unlock(folder)
    assert command.chosen(command.read_runs(tmp_path), dict(dataset=runs.data_name(cfg)))[0].folder == folder


def test_images_that_moved_are_the_same_run(tmp_path, fake_run):
    "A folder made under an older name is used again; other data are another run."
    before = configure("simclr", dataset="folder", data_dir="old place")
    folder = fake_run(root=tmp_path, method="simclr", dataset="folder", data_dir="old place")
    folder = folder.rename(tmp_path/folder.name.replace("old-place", "folder"))
    for cfg in (before, configure("simclr", dataset="folder", data_dir="new place")):
        assert runs.open_run(cfg, "d", tmp_path) == folder
        assert runs.run_folder(cfg, "e", tmp_path) != folder


def test_no_control_character_reaches_the_terminal(tmp_path, capsys):
    folder = tmp_path/"evil\x1b[2J"
    folder.mkdir()
    (folder/"config.json").write_text(json.dumps(dict(config=dict(method="\x1b]0;owned\x07", seed="\r\n"))))
    for words in (["runs"], ["runs", "show", "evil", "--quick"], ["runs", "compare", "evil"], ["runs", "disk"]):
        text = out(capsys, *words, "--root", tmp_path)
        assert not any(ord(c) < 32 and c != "\n" for c in text) and "\\x1b" in text


# ---- deleting

def refusals(root, folder):
    with pytest.raises(Refusal) as caught:
        runs.delete_run(folder, root)
    return str(caught.value)


def test_only_run_folders_are_deleted(root, tmp_path):
    "Not a link, not a folder elsewhere, not one of another name or with a borrowed record; and all is as it was."
    run = runs.all_folders(root)[0]
    outside = tmp_path/"outside"/run.name
    outside.mkdir(parents=True)
    for path in run.iterdir():
        (outside/path.name).write_bytes(path.read_bytes())
    (root/f"link-{run.name[-12:]}").symlink_to(outside)
    (root/"thesis").mkdir()
    (root/"thesis"/"chapter.tex").write_text("years of work")
    (root/f"borrowed-{run.name[-12:]}").mkdir()
    (root/f"borrowed-{run.name[-12:]}"/"config.json").symlink_to(run/"config.json")
    (root/"copy-000000000000").mkdir()
    (root/"copy-000000000000"/"config.json").write_bytes((run/"config.json").read_bytes())
    before = tree(tmp_path)
    for folder in (root/f"link-{run.name[-12:]}", outside, root, root/"thesis", root/f"borrowed-{run.name[-12:]}",
                   root/"copy-000000000000", root/".."/"outside"/run.name, root/"none"):
        assert "not deleted here" in (why := refusals(root, folder)) or "cannot be read" in why
    assert tree(tmp_path) == before
    assert command.main(["runs", "delete", "--yes", "thesis", "--root", str(root)]) == 1 and tree(tmp_path) == before


def test_links_in_a_run_are_removed_and_not_followed(root, tmp_path):
    "A run's folder goes with all below it; what lies behind its links stays."
    (tmp_path/"data").mkdir()
    (tmp_path/"data"/"image.png").write_text("x")
    run = runs.all_folders(root)[0]
    (run/"data").symlink_to(tmp_path/"data")
    (run/"notes").mkdir()
    (run/"notes"/"far").symlink_to(tmp_path/"data"/"image.png")
    others = {str(path): tree(path) for path in runs.all_folders(root)[1:]}
    runs.delete_run(run, root)
    assert not run.exists() and (tmp_path/"data"/"image.png").read_text() == "x"
    assert others == {str(path): tree(path) for path in runs.all_folders(root)}


def test_a_run_in_use_stays(root):
    "Held by this process or by another; of several named runs none is deleted then."
    free, held = runs.all_folders(root)[:2]
    before = tree(root)
    with runs.open_lock(held) as file:
        assert runs.try_lock(file, held)
        assert "is in use by" in refusals(root, held)
        assert command.main(["runs", "delete", "--yes", free.name, held.name, "--root", str(root)]) == 1
    runs.lock(held)
    assert "is in use by" in refusals(root, held)
    runs.unlock(held)
    assert tree(root) == before


def test_an_interrupted_deletion_leaves_an_unfinished_run(root, monkeypatch):
    "At whichever file it stops; and the same command deletes the rest."
    run = next(run.folder for run in command.read_runs(root) if run.state == "complete")
    unlink, left = Path.unlink, len(list(run.iterdir()))

    def stop(path, *args, **kwargs):
        if len(list(run.iterdir())) == left - stopping:
            raise OSError(5, "Input/output error")
        unlink(path, *args, **kwargs)
    for stopping in range(1, left - 2):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", stop)
            assert "cannot be deleted to its end" in refusals(root, run)
        assert command.Run(run).state == "unfinished"
    runs.delete_run(run, root)
    assert not run.exists()


def test_unasked_only_by_whole_names(root):
    "A part of a name means another run when the command is repeated."
    folder = runs.all_folders(root)[0]
    before = tree(root)
    assert command.main(["runs", "delete", "--yes", folder.name[-12:], "--root", str(root)]) == 1
    assert command.main(["runs", "delete", folder.name, "--root", str(root)]) == 1, "nobody to ask"
    assert tree(root) == before
    assert command.main(["runs", "delete", "--yes", folder.name, "--root", str(root)]) == 0 and not folder.exists()


class Terminal:
    "A command on a terminal of its own, on which keys are pressed."
    def __init__(self, *words, columns=70):
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.environ["COLUMNS"] = str(columns)
            os.execv(sys.executable, [*PYTHON, *map(str, words)])
        self.text = ""

    def read(self, until=None):
        "All that is written, or what is written up to a text."
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (until and until in self.text):
            try:
                if select.select([self.file], [], [], .1)[0]:
                    self.text += os.read(self.file, 4096).decode()
            except OSError:   # its end
                break
        return self.text.replace("\r\n", "\n")

    def press(self, keys):
        os.write(self.file, keys)
        text = self.read()
        until = time.monotonic() + 10
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > until:   # a failure, not a test that hangs
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(.02)
        return text, os.waitstatus_to_exitcode(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("keys, code, gone", [
    (b"\n", 0, False), (b"n\n", 0, False), (b"yess\n", 0, False), (b"\x04", 0, False), (b"\x03", 130, False),
    (b"y\n", 0, True)], ids=["return", "n", "yess", "ctrl-d", "ctrl-c", "y"])
def test_the_question_on_a_terminal(root, keys, code, gone):
    "Only a yes deletes; what is asked about is listed before."
    folder = runs.all_folders(root)[0]
    terminal = Terminal("runs", "delete", folder.name[-12:], "--root", root)
    asked = terminal.read("[y/N] ")
    assert "Delete 1 run, " in asked and folder.name[-12:] in asked
    text, status = terminal.press(keys)
    assert status == code and folder.exists() is not gone
    assert ("deleted 1 run" in text) is gone and "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 100])
def test_tables_fit_the_terminal(root, columns):
    for words in (["runs"], ["runs", "compare", *[folder.name for folder in runs.all_folders(root)]], ["methods"]):
        extra = ["--root", root] if words[0] == "runs" else []
        lines = Terminal(*words, *extra, columns=columns).read().splitlines()
        assert len(lines) > 4 and max(map(len, lines)) <= columns, words


# ---- the notebook

def run_notebook(**given):
    "The names that nbs/runs.ipynb ends with, its parameters as given."
    cells = json.loads((ROOT/"nbs"/"runs.ipynb").read_text())["cells"]
    first, *code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    injected = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in given.items())])
    scope = dict(In=[first, injected])
    for text in (first, injected, *code):
        exec(text, scope)
    return scope


@pytest.mark.slow
def test_the_notebook_shows_the_same_and_deletes_only_what_is_named(fake_run, project_copy, monkeypatch):
    "Every parameter is a filter; without `delete`, or with a part of a name, all is as before."
    monkeypatch.chdir(project_copy)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    root = project_copy/"outputs"/"runs"
    folders = [fake_run(root=root, **given) for given in CONFIGS]
    before = tree(root)
    scope = run_notebook(method="*supcon", alpha=.5)
    assert [run.folder for run in scope["runs"]] == [folders[3]]
    assert [row["bytes"] for row in scope["use"]] == [command.size_text(scope["runs"][0].size)]
    assert len(run_notebook(compare=f"{folders[0].name} {folders[2].name[-12:]}")["chosen"]) == 2
    assert run_notebook(method="none")["runs"] == [] and tree(root) == before
    with pytest.raises(Refusal, match="is a part of"):
        run_notebook(delete=folders[0].name[:-1])
    assert tree(root) == before
    run_notebook(delete=folders[0].name)
    assert runs.all_folders(root) == sorted(folders[1:])


# ---- the command line

@pytest.mark.parametrize("words, code, sentence", [
    (["rnus"], 1, "unknown command 'rnus' (did you mean 'runs'?)"),
    (["runs", "shwo"], 2, "did you mean `runs show`?"),
    (["runs", "--metod", "x"], 2, "did you mean --method?"),
    (["runs", "alpa=1"], 1, "no run has an option 'alpa': did you mean 'alpha'?"),
    (["runs", "--state", "finished"], 1, "did you mean 'unfinished'?"),
    (["runs", "--since", "soon"], 1, "since 'soon' is no time"),
    (["runs", "show"], 2, "the following arguments are required: RUN"),
    (["runs", "disk", "--by", "colour"], 1, "unknown column 'colour'"),
    (["options", "supcom"], 1, "did you mean 'supcon'?")])
def test_what_is_not_understood_is_one_sentence(root, capsys, words, code, sentence):
    where = ["--root", str(root)] if words[0] == "runs" else []
    assert command.main([*words, *where]) == code
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_help_names_every_command(capsys):
    text = out(capsys, "--help")
    assert all(f"  {name} " in text for name in command.COMMANDS)
    for name in command.COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            command.main([*name.split(), "--help"])
        assert "usage: python -m mixsupcon" in capsys.readouterr().out


def test_a_reader_that_goes_away_is_no_error(root):
    "As in `| head`: no traceback, no message."
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PYTHON, "runs", "--root", root], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 141 and done.stderr == b""
