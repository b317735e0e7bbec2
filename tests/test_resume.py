"Nothing acknowledged is lost, and what goes on is what would have been."
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mixsupcon.config import Refusal, configure
from mixsupcon.data import assembled, fingerprint
from mixsupcon.methods import METHODS
from mixsupcon.runs import checkpoints, open_run, pack, run_folder, unlock, unpack
from mixsupcon.train import Learner, load_net, optimizer_of, pretrain, settled, train_epoch


@pytest.fixture(scope="module")
def tiny():
    x = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    return assembled(x, y, x, y, ["a", "b"])


def test_killed_and_resumed(tmp_path):
    "kill -9 in the third of four epochs, then the same command: every tensor and every line of the log, bit for bit."
    done = subprocess.run([sys.executable, Path(__file__).with_name("killed.py"), tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == set(METHODS)
    for method, said in report.items():
        assert said["killed"] and 2 in said["left"] and 4 not in said["left"], (method, said)
        assert said["tensors"] > 40 and said["differ"] == [], (method, said["differ"][:5])
        assert said["control"] > 20, "another seed must differ, or the comparison compares nothing"


def interrupted(cfg, data, root, epoch, monkeypatch):
    "A run stopped by Ctrl-C in `epoch`."
    from mixsupcon import train
    cfg = settled(cfg)
    whole = train.train_epoch

    def stop(*args):
        if args[-1] == epoch:
            raise KeyboardInterrupt
        return whole(*args)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, data, root)
    return run_folder(cfg, fingerprint(data), root)


def test_dropped_state_is_noticed(tiny, tmp_path, monkeypatch):
    "The comparison can fail: a checkpoint without its momentum ends elsewhere."
    from mixsupcon import train
    cfg = configure(epochs=3, batch_size=8, save_seconds=0.)
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    interrupted(cfg, tiny, tmp_path/"dropped", 2, monkeypatch)
    whole = train.load_checkpoint
    monkeypatch.setattr(train, "load_checkpoint", lambda folder: [({k: v for k, v in found[0].items() if not k.startswith("opt.")}, found[1]) for found in [whole(folder)]][0])
    dropped = load_net(pretrain(cfg, tiny, tmp_path/"dropped")).state_dict()
    assert any(not torch.equal(straight[k], dropped[k]) for k in straight)


def test_a_checkpoint_of_another_config_is_refused(tiny, tmp_path, monkeypatch):
    "With the fields that differ; the run's own checkpoints stay."
    mine, other = configure(epochs=3, batch_size=8, save_seconds=0.), configure(epochs=3, batch_size=8, tau=.2, save_seconds=0.)
    theirs = interrupted(other, tiny, tmp_path, 2, monkeypatch)
    folder = open_run(settled(mine), fingerprint(tiny), tmp_path)
    unlock(folder)
    for path in checkpoints(theirs):
        shutil.copy(path, folder)
    with pytest.raises(Refusal, match="of another run: tau 0.2 there, 0.1 here"):
        pretrain(mine, tiny, tmp_path)
    assert len(checkpoints(theirs)) == 1


def test_a_damaged_checkpoint_falls_back(tiny, tmp_path, monkeypatch):
    "The one before serves, and the end is the same."
    cfg = configure(epochs=4, batch_size=8, save_seconds=0.)
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    folder = interrupted(cfg, tiny, tmp_path/"damaged", 4, monkeypatch)
    newest = checkpoints(folder)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged"):
        pretrain(cfg, tiny, tmp_path/"damaged")
    assert all(torch.equal(v, straight[k]) for k, v in load_net(folder).state_dict().items())


def test_weights_that_training_did_not_write_are_refused(tiny, tmp_path):
    folder = pretrain(configure(epochs=1, batch_size=8), tiny, tmp_path)
    weights = bytearray((folder/"net.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder/"net.safetensors").write_bytes(weights)
    with pytest.raises(Refusal, match="is not the file that training wrote"):
        load_net(folder)


def test_a_folder_in_use_is_refused(tiny, tmp_path):
    "Another process holds the run: nothing is touched, and its number is told."
    cfg = configure(epochs=1, batch_size=8)
    code = ("import sys, time, pathlib; from mixsupcon.config import configure; from mixsupcon.runs import open_run; from mixsupcon.train import settled\n"
            "open_run(settled(configure(epochs=1, batch_size=8)), sys.argv[1], pathlib.Path(sys.argv[2])); print('held', flush=True); time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code, fingerprint(tiny), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal, match=f"is in use by process {holder.pid}"):
            pretrain(cfg, tiny, tmp_path)
    finally:
        holder.kill(), holder.wait()
    folder = pretrain(cfg, tiny, tmp_path)   # the lock died with its holder
    ask = [sys.executable, "-c", "import sys, pathlib; from mixsupcon.runs import lock; lock(pathlib.Path(sys.argv[1]))", str(folder)]
    assert subprocess.run(ask).returncode == 0, "a finished run is free, though this process lives on"


def test_a_diverging_run_stops_and_loses_nothing(tiny, tmp_path, monkeypatch):
    "A non-finite loss ends training in one sentence; the checkpoint before it is whole."
    from mixsupcon import train
    cfg, real = configure(epochs=3, batch_size=8, save_seconds=0.), train.step_loss
    monkeypatch.setattr(train, "step_loss", lambda *args: real(*args)*(float("nan") if args[-1] >= 4 else 1))
    with pytest.raises(Refusal, match="the loss is nan in epoch 2, step 2 of 3"):
        pretrain(cfg, tiny, tmp_path)
    monkeypatch.undo()
    folder = run_folder(settled(cfg), fingerprint(tiny), tmp_path)
    assert len(checkpoints(folder)) == 1
    straight = load_net(pretrain(cfg, tiny, tmp_path/"straight")).state_dict()
    assert all(torch.equal(v, straight[k]) for k, v in load_net(pretrain(cfg, tiny, tmp_path)).state_dict().items())


def test_fused_steps_resume_exactly(tiny):
    "Fused steps walk memory in its order: momentum must come back in the order of its parameter."
    cfg = settled(configure(epochs=2, batch_size=8))
    def learner():
        made = Learner(cfg, tiny, torch.device("cpu"))
        made.optimizer = optimizer_of(cfg, made.net, fused=True)
        return made
    straight, resumed = learner(), learner()
    train_epoch(cfg, straight, tiny.train_x, tiny.train_y, tiny, 1)
    resumed.load(unpack(pack(straight.tensors(), {}))[0])
    for one in (straight, resumed):
        train_epoch(cfg, one, tiny.train_x, tiny.train_y, tiny, 2)
    assert all(torch.equal(v, resumed.tensors()[k]) for k, v in straight.tensors().items())


@pytest.mark.parametrize("method", ["simclr", "supcon", "mixsupcon", "ce"])
def test_half_precision_trains(tiny, method):
    "bfloat16 in the network, float32 around it."
    cfg = settled(configure(method=method, precision="bfloat16", epochs=1, batch_size=8))
    learner = Learner(cfg, tiny, torch.device("cpu"))
    before = {k: v.clone() for k, v in learner.tensors().items()}
    assert 0 < train_epoch(cfg, learner, tiny.train_x, tiny.train_y, tiny, 1) < 10
    assert learner.net(torch.randn(2, 3, 8, 8)).dtype == torch.float32
    assert any(not torch.equal(v, before[k]) for k, v in learner.tensors().items() if k in before)
