"Logging a run to trackers changes nothing of it, each epoch is there once, and a tracker cannot stop it."
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import ConfigError, identity
from mixsupcon.lab import progress, train
from mixsupcon.lab.data import fingerprint
from mixsupcon.lab.progress import TRACKERS, final_numbers, finish_tracking
from mixsupcon.lab.runs import read_json, read_log, run_folder
from mixsupcon.lab.train import load_net, pretrain, resolve_device

EPOCHS = 3
SMALL = dict(batch_size=8, image_size=8, epochs=EPOCHS, device="cpu", save_seconds=1e9)   # no checkpoint: all again
ROWS = [dict(protocol="lin_supcontrast", metric="accuracy", selection="last", value=.75),
        dict(protocol="lin_supcontrast", metric="accuracy", selection="best_test", value=.8),
        dict(protocol="features", metric="silhouette", selection="last", value=None)]
WANDB = """
import json, os
from pathlib import Path
FILE = Path(os.environ["STUB"])
Settings = dict

class Run:
    step, summary = 0, {}

    def write(self, **what):
        with open(FILE, "a") as file:
            print(json.dumps(what), file=file)

    def log(self, numbers, step):
        self.step = step + 1
        self.write(step=step, **numbers)

    def finish(self):
        self.write(summary=self.summary)

def init(**given):
    run = Run()
    run.write(init={name: given[name] for name in ("id", "name", "mode", "dir")}, method=given["config"]["method"])
    return run
"""


@pytest.fixture
def project(project_copy, monkeypatch):
    "A project of its own, in which the trackers write, with nothing set in the environment."
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project_copy)
    return project_copy


@pytest.fixture
def wandb_stub(tmp_path, monkeypatch):
    "A module `wandb` that writes what it is given to a file: the file."
    (tmp_path/"stub").mkdir()
    (tmp_path/"stub"/"wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path/"stub")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("STUB", str(tmp_path/"wandb.jsonl"))
    return tmp_path/"wandb.jsonl"


def interrupted_and_continued(tiny, root, track, monkeypatch):
    "The folder of a run that was stopped in its third epoch and trained again, with its final numbers sent."
    cfg, write = configure("supcon", track=track, **SMALL), train.log

    def stop(folder, row):
        if row["epoch"] == EPOCHS:
            raise KeyboardInterrupt
        write(folder, row)
    with monkeypatch.context() as patch:
        patch.setattr(train, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, tiny, root)
    folder = pretrain(cfg, tiny, root)
    (folder/"metrics.json").write_text(json.dumps(dict(rows=ROWS)))
    for _ in range(2):   # the notebook may be run again
        finish_tracking(cfg, folder)
    return folder


def check(folder, losses, finals):
    "Every epoch once, with the numbers of the log; the final numbers once, at the last epoch."
    assert losses == [(row["epoch"], pytest.approx(row["loss"], rel=1e-6)) for row in read_log(folder)]
    assert {name: values for name, values in finals.items()} == {
        "lin_supcontrast/accuracy": [(EPOCHS, pytest.approx(.75))],
        "lin_supcontrast/accuracy_best_test": [(EPOCHS, pytest.approx(.8))]}


@pytest.mark.slow
def test_tensorboard(project, tiny, tmp_path, monkeypatch):
    "As TensorBoard itself reads it."
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = interrupted_and_continued(tiny, tmp_path/"runs", "tensorboard", monkeypatch)
    events = EventAccumulator(str(project/"outputs"/"tracking"/"tensorboard"/folder.name)).Reload()

    def scalars(name):
        return [(event.step, event.value) for event in events.Scalars(name)]
    check(folder, scalars("loss"), {name: scalars(name) for name in final_numbers(ROWS)})
    assert b"tau" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_mlflow(project, tiny, tmp_path, monkeypatch):
    "As its own client reads it from the files: one run, found by its identity."
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient
    folder = interrupted_and_continued(tiny, tmp_path/"runs", "mlflow", monkeypatch)
    client = MlflowClient((project/"outputs"/"tracking"/"mlflow").as_uri())
    run, = client.search_runs([client.get_experiment_by_name("mixsupcon").experiment_id])
    assert run.info.run_name == folder.name and run.info.status == "FINISHED"
    assert run.data.tags["identity"] == read_json(folder/"config.json")["identity"]
    assert run.data.params["tau"] == str(configure("supcon", **SMALL).tau)

    def history(name):
        return [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
    check(folder, history("loss"), {name: history(name) for name in final_numbers(ROWS)})


@pytest.mark.slow
def test_wandb(project, tiny, tmp_path, monkeypatch, wandb_stub):
    "Offline, always the same id; each session has the run from its first epoch, so its files alone are the whole run."
    folder = interrupted_and_continued(tiny, tmp_path/"runs", "wandb", monkeypatch)
    lines = [json.loads(line) for line in wandb_stub.read_text().splitlines()]
    starts = [line["init"] for line in lines if "init" in line]
    assert len(starts) == 4 and all(start == starts[0] for start in starts)   # stopped, trained, and finished twice
    assert starts[0]["mode"] == "offline" and starts[0]["name"] == folder.name
    assert starts[0]["dir"] == str(project/"outputs"/"tracking")
    assert [line["step"] for line in lines if "step" in line] == [1, 2, *[1, 2, 3]*3]
    assert lines[-1]["summary"] == final_numbers(ROWS)


@pytest.mark.slow
def test_nothing_of_the_run_changes(project, tiny, tmp_path, wandb_stub):
    "The same identity, folder name and weights with trackers and without."
    plain, tracked = (configure("supcon", track=track, **SMALL) for track in ("none", "wandb"))
    data = fingerprint(tiny)
    assert identity(plain, data) == identity(tracked, data)
    folders = [pretrain(cfg, tiny, tmp_path/cfg.track) for cfg in (plain, tracked)]
    assert folders[0].name == folders[1].name
    weights = [load_net(folder).state_dict() for folder in folders]
    assert all(torch.equal(v, weights[1][name]) for name, v in weights[0].items())


def test_a_missing_package_is_refused_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    cfg = configure("supcon", track="tensorboard mlflow", **SMALL)
    with pytest.raises(ConfigError, match="needs tensorboard and mlflow: pip install tensorboard mlflow"):
        pretrain(cfg, tiny, tmp_path)
    assert not run_folder(resolve_device(cfg), fingerprint(tiny), tmp_path).exists()
    with pytest.raises(ConfigError, match="unknown track 'tensorbord'"):
        configure("supcon", track="tensorbord")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["__init__", "log", "close"])
def test_a_tracker_that_fails_is_left_out(tiny, tmp_path, monkeypatch, when):
    "Training goes on without it, and says so once; the other tracker gets everything."
    got, lines = [], []

    def fail(*_):
        raise OSError("disk full\nno space")

    class Good:
        package = "json"

        def __init__(self, *_):
            self.log, self.close = got.append, lambda: None
    bad = type("Bad", (), dict(package="json", __init__=lambda *_: None, log=lambda *_: None, close=lambda *_: None))
    setattr(bad, when, fail)
    monkeypatch.setitem(TRACKERS, "tensorboard", bad)
    monkeypatch.setitem(TRACKERS, "mlflow", Good)
    monkeypatch.setattr(progress, "report", lambda line, display=None: lines.append(line))
    folder = pretrain(configure("supcon", track="tensorboard mlflow", **SMALL), tiny, tmp_path)
    assert (folder/"training.json").exists() and [row["epoch"] for row in got] == [1, 2, 3]
    assert lines == ["json failed and is left out, training goes on: disk full no space"]


def test_an_older_run_is_read_without_the_option():
    "Runs made before the option existed, and numbers that are not there."
    assert final_numbers(ROWS[2:]) == {}
    finish_tracking(SimpleNamespace(track="none"), None)   # asks for nothing
