"What several tests need: a tiny data set, a project of its own, run folders of both versions."
import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
import warm
from mixsupcon.core.configure import configure
from mixsupcon.lab import data, runs

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:   # as in the background of a shell, and inherited by every child
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "WARM_PYTHON" not in os.environ:   # else a worker of pytest-xdist
    PLACE = warm.prepare()

    def pytest_unconfigure():
        shutil.rmtree(PLACE, ignore_errors=True)   # a server ends, and does the same, within a second

COSTLY = "result", "toy", "steps", "finished", "trained", "runs", "published", "straight"   # fixtures that take seconds


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A test with such a fixture is slow. Files with many slow tests come first: of several processes, each of which
    takes a file at a time, none waits long for another in the end."""
    for item in items:
        if {*COSTLY}.intersection(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


ROOT = Path(__file__).parents[1]
FIRST_VERSION = Path(__file__).parent/"data"/"first_version_runs"


def random_images(n, side, classes=2):
    "A data set of random images."
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % classes
    return data.make_dataset(x, y, x, y, list("abcdefghij"[:classes]))


@pytest.fixture(scope="session")
def tiny():
    "Twenty images of 8 pixels, two classes."
    return random_images(20, 8)


@pytest.fixture
def project_copy(tmp_path):
    "A project of its own with the experiments' notebooks: what runs there leaves nothing here."
    (tmp_path/"nbs").mkdir()
    for path in (ROOT/"nbs").glob("*.ipynb"):
        shutil.copy(path, tmp_path/"nbs")
    shutil.copy(ROOT/"settings.ini", tmp_path)
    return tmp_path


@pytest.fixture
def fake_run(tmp_path):
    "A function that makes a complete run folder without training: `fake_run(value=.9, method='supcon', seed=1)`."
    def make(root=tmp_path/"runs", value=.9, data_hash="d", **given):
        cfg = configure(**given)
        folder = runs.open_run(cfg, data_hash, root)
        runs.visit(folder)
        runs.log(folder, dict(epoch=1, lr=.1, loss=1., passes=10, seconds=.5))
        weights = runs.pack(dict(a=torch.ones(3)), {})
        for name in ("net", "encoder"):
            data.write(folder/f"{name}.safetensors", weights)
        net = data.digest(weights)
        spent = dict(epochs=cfg.epochs, images_seen=100, passes=200, seconds=.5)
        runs.write_json(folder/"training.json", dict(**spent, classes=["a", "b"], image_size=8, mean=[.5]*3, std=[.5]*3,
                                                     loss=1., net=net, encoder=net))
        row = dict(protocol=cfg.probe, metric="accuracy", value=value, n=100, selection="last")
        rows = [row, row | dict(selection="best_test"), row | dict(metric="train_accuracy")]
        for name in runs.result_names(cfg):
            runs.write_json(folder/f"{name}.json", dict(net=net, rows=rows, curve=[value], confusion=[[1, 0], [0, 1]]))
        runs.seal(folder)
        runs.unlock(folder)
        return folder
    return make


@pytest.fixture
def first_version_runs(tmp_path):
    "The run folders of the first version, with stand-ins for the weights, which are not stored."
    root = tmp_path/"first version"
    shutil.copytree(FIRST_VERSION, root)
    for folder in root.iterdir():
        known = json.loads((folder/"training.json").read_text())["net"]
        weights = f"the weights of {folder.name}".encode()
        (folder/"net.safetensors").write_bytes(weights)
        for path in folder.glob("*.json"):
            path.write_text(path.read_text().replace(known, data.digest(weights)))
        metrics = json.loads((folder/"metrics.json").read_text())
        metrics["seals"] = {name: data.digest((folder/f"{name}.json").read_bytes()) for name in metrics["seals"]}
        (folder/"metrics.json").write_text(json.dumps(metrics))
    return root
