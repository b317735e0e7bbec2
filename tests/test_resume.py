"Nothing acknowledged is lost, and what goes on is what would have been."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import Refusal
from mixsupcon.lab import train
from mixsupcon.lab.data import fingerprint
from mixsupcon.lab.runs import checkpoints, open_run, pack, run_folder, unlock, unpack
from mixsupcon.lab.train import Learner, load_net, optimizer_for, pretrain, resolve_device, train_epoch
from warm import WARM

PROGRAM = Path(__file__).parent/"programs"/"killed.py"
SMALL = dict(batch_size=8, save_seconds=0., image_size=8)


def killed(root, methods):
    done = subprocess.run([*WARM, PROGRAM, root, *methods], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_killed(report):
    for method, found in report.items():
        assert found["killed"] and 2 in found["left"] and 3 not in found["left"], (method, found)
        assert found["tensors"] > 40 and found["differ"] == [], (method, found["differ"][:5])
        assert found.get("control", 99) > 20, "another seed must differ, or the comparison compares nothing"


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_killed_and_resumed(tmp_path, half):
    "kill -9 in the third of three epochs, then the same command: every tensor and every line of the log, bit for bit."
    methods = [*METHODS][half::2]
    report = killed(tmp_path, methods)
    assert [*report] == methods
    check_killed(report)


def interrupted(cfg, data, root, epoch, monkeypatch):
    "The folder of a run stopped by Ctrl-C at the end of `epoch`, before its line is in the log."
    cfg, write = resolve_device(cfg), train.log

    def stop(folder, row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt
        write(folder, row)
    with monkeypatch.context() as patch:
        patch.setattr(train, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, data, root)
    return run_folder(cfg, fingerprint(data), root)


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.mark.slow
def test_dropped_state_is_noticed(tiny, tmp_path, monkeypatch):
    "The comparison can fail: a checkpoint without its momentum ends elsewhere."
    cfg = configure(epochs=3, **SMALL)
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    interrupted(cfg, tiny, tmp_path/"dropped", 2, monkeypatch)
    whole = train.load_checkpoint

    def without_momentum(folder):
        tensors, state = whole(folder)
        return {k: v for k, v in tensors.items() if not k.startswith("opt.")}, state
    monkeypatch.setattr(train, "load_checkpoint", without_momentum)
    dropped = load_net(pretrain(cfg, tiny, tmp_path/"dropped")).state_dict()
    assert not same(straight, dropped)


def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, monkeypatch):
    "The run's own checkpoints stay."
    mine, other = configure(epochs=3, **SMALL), configure(epochs=3, tau=.2, **SMALL)
    theirs = interrupted(other, tiny, tmp_path, 2, monkeypatch)
    folder = open_run(resolve_device(mine), fingerprint(tiny), tmp_path)
    unlock(folder)
    for path in checkpoints(theirs):
        shutil.copy(path, folder)
    with pytest.raises(Refusal, match="is of another run"):
        pretrain(mine, tiny, tmp_path)
    assert len(checkpoints(theirs)) == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back(tiny, tmp_path, monkeypatch):
    "The one before serves, and the end is the same."
    cfg = configure(epochs=4, **SMALL)
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    folder = interrupted(cfg, tiny, tmp_path/"damaged", 4, monkeypatch)
    newest = checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        pretrain(cfg, tiny, tmp_path/"damaged")
    assert same(straight, load_net(folder).state_dict())


def test_weights_that_training_did_not_write_are_refused(tiny, tmp_path):
    folder = pretrain(configure(epochs=1, **SMALL), tiny, tmp_path)
    weights = bytearray((folder/"net.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder/"net.safetensors").write_bytes(weights)
    with pytest.raises(Refusal, match="is not the file that training wrote"):
        load_net(folder)


LOCK = "import sys, pathlib; from mixsupcon.lab.runs import lock; lock(pathlib.Path(sys.argv[1]))"


@pytest.mark.slow
def test_a_folder_in_use_is_refused(tiny, tmp_path):
    "Another process holds the run: nothing is touched, and its number is named; the lock dies with its holder."
    cfg = configure(epochs=1, **SMALL)
    read, write = os.pipe()
    holder = os.fork()
    if not holder:
        open_run(resolve_device(cfg), fingerprint(tiny), tmp_path)
        os.write(write, b"held")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(read, 4) == b"held"
        with pytest.raises(Refusal, match=f"is in use by process {holder}"):
            pretrain(cfg, tiny, tmp_path)
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    folder = pretrain(cfg, tiny, tmp_path)
    free = subprocess.run([sys.executable, "-c", LOCK, str(folder)]).returncode == 0
    assert free, "a finished run is free, though this process lives on"


@pytest.mark.slow
def test_a_diverging_run_stops_and_loses_nothing(tiny, tmp_path, monkeypatch):
    "A non-finite loss ends training in one sentence; the checkpoint before it is whole."
    cfg, real = configure(epochs=3, **SMALL), train.compute_loss
    code = train.training_code(resolve_device(cfg))

    def broken(cfg, learner, x, y, data, step, *more):
        made = real(cfg, learner, x, y, data, step, *more)
        made.loss = made.loss*(float("nan") if step >= 4 else 1)
        return made
    with monkeypatch.context() as patch:
        patch.setattr(train, "compute_loss", broken)
        patch.setattr(train, "training_code", lambda cfg: code)   # which would notice the broken loss
        with pytest.raises(Refusal, match="the loss is nan in epoch 2, step 2 of 3"):
            pretrain(cfg, tiny, tmp_path)
    assert len(checkpoints(run_folder(resolve_device(cfg), fingerprint(tiny), tmp_path))) == 1
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    assert same(straight, load_net(pretrain(cfg, tiny, tmp_path)).state_dict())


def test_fused_steps_resume_exactly(tiny):
    "Fused steps walk memory in its order: momentum must come back in the order of its parameter."
    cfg = resolve_device(configure(epochs=2, **SMALL))

    def learner():
        made = Learner(cfg, tiny, torch.device("cpu"))
        made.optimizer = optimizer_for(cfg, made.net, fused=True)
        return made
    straight, resumed = learner(), learner()
    train_epoch(cfg, straight, tiny.train_x, tiny.train_y, tiny, 1)
    resumed.load(unpack(pack(straight.tensors(), {}))[0])
    for one in (straight, resumed):
        train_epoch(cfg, one, tiny.train_x, tiny.train_y, tiny, 2)
    assert same(straight.tensors(), resumed.tensors())


@pytest.mark.parametrize("method", ["simclr", "supcon", "mixsupcon", "ce"])
def test_half_precision_trains(tiny, method):
    "bfloat16 in the network, float32 around it."
    cfg = resolve_device(configure(method=method, precision="bfloat16", epochs=1, **SMALL))
    learner = Learner(cfg, tiny, torch.device("cpu"))
    before = {k: v.clone() for k, v in learner.tensors().items()}
    assert 0 < train_epoch(cfg, learner, tiny.train_x, tiny.train_y, tiny, 1)["loss"] < 10
    assert learner.net(torch.randn(2, 3, 8, 8)).dtype == torch.float32
    assert any(not torch.equal(v, before[k]) for k, v in learner.tensors().items() if k in before)
