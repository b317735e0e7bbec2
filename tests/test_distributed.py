"Two processes that share their batches make the numbers of one; they start, stop, fail and continue together."
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import random_images
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS
from mixsupcon.core.mixers import MIXERS
from mixsupcon.core.options import PLUGINS, identity, refused
from mixsupcon.lab import distributed, extend, progress, train
from mixsupcon.lab.data import load_data
from mixsupcon.lab.runs import checkpoints, read_json, read_log
from mixsupcon.lab.train import load_net, pretrain
from test_streaming import paint
from warm import WARM

PROGRAMS = Path(__file__).parent/"programs"
SMALL = dict(batch_size=7, save_seconds=0., image_size=8, device="cpu", epochs=2)


@pytest.fixture(autouse=True)
def warm(monkeypatch):
    "The processes that `devices` starts have imported PyTorch already."
    monkeypatch.setattr(distributed, "PYTHON", WARM)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    "What two processes found: case → how far they are from one process, and from each other."
    place = tmp_path_factory.mktemp("steps")
    command = [*WARM, PROGRAMS/"shared.py", place]
    env = os.environ | dict(PYTHONPATH=f"{Path(__file__).parents[1]}:{Path(__file__).parent}")
    both = [subprocess.Popen([*command, str(number)], env=env, stderr=subprocess.PIPE, text=True) for number in (0, 1)]
    said = [process.communicate()[1] for process in both]
    assert not any(process.returncode for process in both), said
    return json.loads((place/"0.json").read_text()) | json.loads((place/"1.json").read_text())


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(steps):
    "Loss, every gradient and every tensor after, in float64: for each method, mixer, switch and uneven batch."
    assert {*METHODS} <= {*steps} and {f"mixsupcon, {mixer}" for mixer in MIXERS} <= {*steps} and len(steps) > 85
    assert {name: found for name, found in steps.items() if not found["gap"] < 1e-9} == {}
    assert all(found["tensors"] > 40 for found in steps.values())


@pytest.mark.slow
def test_their_state_is_the_same_to_the_bit(steps):
    "Queue, prototypes, bank, momentum encoder, running statistics: all that the network has."
    assert {name: found for name, found in steps.items() if found["between"]} == {}


def run(root, data, method="moco", **given):
    "The folder of a run."
    sizes = dict(queue=21) if method in ("moco", "amix_c") else {}
    return pretrain(configure(method, **SMALL | sizes | given), data, root)


def tensors(folder):
    return load_net(folder).state_dict()


def close(ours, theirs):
    return all(torch.allclose(v.double(), theirs[name].double(), rtol=1e-3, atol=1e-4) for name, v in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("method, given", [
    ("moco", {}), ("amix_c", dict(clusters=3)), ("supcon", dict(optimizer="lars", batch_size=10)),
    ("swav", dict(small_crops=2, small_size=8, queue=0, frozen_steps=2))])
def test_a_run_of_two_processes_is_the_run_of_one(tmp_path, method, given):
    "Twenty images, mostly in batches of seven: the same folder, log and weights, up to rounding, whoever made them."
    data = random_images(20, 16)
    one, two = (run(tmp_path/str(n), data, method, **given, devices=n) for n in (1, 2))
    assert one.name == two.name and sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    losses = [[row["loss"] for row in read_log(folder)] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 2
    assert read_json(one/"training.json")["passes"] == read_json(two/"training.json")["passes"]
    other = run(tmp_path/"other", data, method, **given, seed=1)
    assert close(tensors(one), tensors(two)) and not close(tensors(one), tensors(other))


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    "Options of a run on JPEGs of two classes, in a project of its own."
    (tmp_path/"settings.ini").write_text("lib_name = mixsupcon")
    monkeypatch.chdir(tmp_path)   # where other processes keep what they know of images, too
    for i in range(20):
        paint(tmp_path/"zoo"/("ant" if i % 2 else "bee")/f"{i:02d}.jpg", i, 30 + i, 50 - i)
    return dict(dataset="folder", preset="digits", data_dir=str(tmp_path/"zoo"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
@pytest.mark.parametrize("method, how", [("mixsupcon", dict(memory_gb=1e-6, pack="on")), ("simclr", dict(crop="full"))])
def test_each_process_reads_its_own_images(tmp_path, photographs, method, how):
    "From the disk at each step: to the bit what two have from memory, and up to rounding what one process reads."
    def made(place, **given):
        cfg = configure(method, **SMALL | photographs | given)
        return tensors(pretrain(cfg, load_data(cfg), tmp_path/place))
    one, two = (made(str(n), **how, devices=n) for n in (1, 2))
    assert close(one, two) and not all(torch.equal(v, two[name]) for name, v in one.items())
    if "crop" not in how:   # which cuts photographs in files
        memory = made("memory", devices=2)
        assert all(torch.equal(v, two[name]) for name, v in memory.items())


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_checkpoint_continues_on_another_number_of_processes(tmp_path, tiny, monkeypatch, before, after):
    "Stopped in the second of three epochs, after the first checkpoint."
    write = train.log

    def stop(folder, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        write(folder, row)
    given = dict(epochs=3, bn_splits=2, batch_size=8, queue=24, last_batch="drop")
    with monkeypatch.context() as patch:
        patch.setattr(train, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tiny, **given, devices=before)
    folder, = tmp_path.glob("moco-*")
    assert len(checkpoints(folder)) == 1 and distributed.world() == 1
    assert run(tmp_path, tiny, **given, devices=after) == folder and not checkpoints(folder)
    straight = run(tmp_path/"straight", tiny, **given)
    assert close(tensors(folder), tensors(straight)) and [row["epoch"] for row in read_log(folder)] == [1, 2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mixsupcon.core.configure import configure
from mixsupcon.lab import distributed, progress, train
from mixsupcon.lab.data import load_data
steps = []
def kill(step):
    steps.append(step)
    if len(steps) == 24 + 22:
        os.kill(os.getpid(), signal.SIGKILL)
progress.WATCHING.append(kill)
distributed.PYTHON = sys.argv[2].split()
cfg = configure("moco", devices=2, **GIVEN)
train.pretrain(cfg, load_data(cfg), Path(sys.argv[1]))
"""


def commands():
    "The command lines of all processes."
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):   # it has ended
            yield path.read_bytes()


@pytest.mark.slow
def test_killed_within_an_epoch_and_continued_by_one_process(tmp_path):
    "Two processes save after 20 of the 24 steps of an epoch; `kill -9` of the first ends both, two steps later."
    given = dict(SMALL, batch_size=8, train_images=192, queue=24, lr=.01, save_seconds=1e-9)
    command = [*WARM, "-c", KILLED.replace("GIVEN", repr(given)), tmp_path/"killed", " ".join(WARM)]
    (tmp_path/"between").mkdir()
    assert subprocess.run(command, env=os.environ | dict(TMPDIR=str(tmp_path/"between"))).returncode == -signal.SIGKILL
    place, = map(str, (tmp_path/"between").glob("tmp*"))
    until = time.monotonic() + 10
    while any(place.encode() in line for line in commands()):   # those of the other process
        assert time.monotonic() < until
        time.sleep(.02)
    folder, = (tmp_path/"killed").iterdir()
    assert [path.name[11:28] for path in checkpoints(folder)][-1] == "00000001.00000020" and len(read_log(folder)) == 1
    cfg, steps = configure("moco", **given), []
    progress.WATCHING.append(steps.append)
    try:
        assert pretrain(cfg, load_data(cfg), tmp_path/"killed") == folder
    finally:
        progress.WATCHING.remove(steps.append)
    straight = pretrain(cfg, load_data(cfg), tmp_path/"straight")
    assert len(steps) == 4 and [row["epoch"] for row in read_log(folder)] == [1, 2]
    assert [row["loss"] for row in read_log(folder)] == pytest.approx([row["loss"] for row in read_log(straight)])
    assert close(tensors(folder), tensors(straight))


@pytest.mark.slow
def test_ctrl_c_stops_all_after_the_epoch(tmp_path, tiny, monkeypatch):
    "The first process saves a checkpoint and says so to the others; none is left."
    write, start, started = train.log, distributed.start, []

    def press(folder, row):
        write(folder, row)
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(train, "log", press)
    monkeypatch.setattr(distributed, "start", lambda *args: started.append(start(*args)) or started[-1])
    with pytest.raises(KeyboardInterrupt, match="stopped after epoch 2 of 50"):
        run(tmp_path, tiny, epochs=50, devices=2, save_seconds=1e9)
    assert [worker.wait(10) for worker in started] and distributed.world() == 1 and not distributed.CONTROL
    folder, = tmp_path.glob("moco-*")
    assert len(checkpoints(folder)) == 1 and len(read_log(folder)) == 2


OWN = """
from mixsupcon import register
from torch import distributed as dist

def fails_on_the_second(xa, xb, lam, gen):
    if dist.is_initialized() and dist.get_rank() == 1:
        raise RuntimeError("the second GPU is out of memory")
    return xb, lam

register("fails_on_the_second", mixer=fails_on_the_second)
"""


@pytest.mark.slow
def test_a_process_that_fails_stops_all_with_its_words(tmp_path, tiny):
    "It has loaded the file of own parts that the first one has."
    (tmp_path/"own.py").write_text(OWN)
    extend.load_plugin(str(tmp_path/"own.py"))
    try:
        words = refused(run, tmp_path, tiny, "mixsupcon", mixer="fails_on_the_second", devices=2)
        assert words.startswith("process 2 of 2 failed, and all were stopped: RuntimeError: the second GPU is out of ")
        assert "own.py" in words and distributed.world() == 1
        PLUGINS.clear()
        alone = refused(run, tmp_path, tiny, "mixsupcon", mixer="fails_on_the_second", devices=2)
        assert "mixer fails_on_the_second is known to this process alone" in alone
    finally:
        MIXERS.pop("fails_on_the_second")
        PLUGINS.clear()


def test_a_process_that_cannot_start(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(distributed, "PYTHON", [sys.executable, "-ISc", "raise SystemExit('no PyTorch here')"])
    words = refused(run, tmp_path, tiny, devices=2)
    assert words.startswith("process 2 of 2 failed, and all were stopped: no PyTorch here; run it again")


def test_more_devices_than_there_are(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(distributed, "cores", lambda: 2)
    assert refused(run, tmp_path, tiny, devices=3) == (
        "devices is 3, but 2 cores can be used here: pass devices 2 or fewer")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert refused(run, tmp_path, tiny, devices=2, device="cuda").startswith(
        "devices is 2, but 1 GPU can be used here: pass")
    assert not any(tmp_path.iterdir())


def test_the_number_of_processes_is_no_part_of_a_run():
    one, two = (configure("moco", devices=n) for n in (1, 2))
    assert identity(one, "data") == identity(two, "data")


@pytest.mark.slow
def test_torchrun(tmp_path):
    "What torchrun starts: the same command in several processes; one of them writes and prints."
    words = "-m mixsupcon train supcon epochs=1 image_size=8 train_images=60 probe_epochs=2 device=cpu --csv --root"
    for again in (False, True):   # the second time there is nothing to train
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        both = [subprocess.Popen([*WARM, *words.split(), tmp_path], **pipes,
                                 env=os.environ | place | dict(RANK=number, LOCAL_RANK=number)) for number in "01"]
        (first, said), (second, nothing) = (process.communicate() for process in both)
        assert [process.returncode for process in both] == [0, 0], said + nothing
        assert first.startswith("method,") and first.count("\n") > 5 and second == "" and "epoch" not in nothing
        assert ("already trained" in said) == again and ("2 × cpu" in said) != again
    assert (next(tmp_path.glob("supcon-*"))/"metrics.json").exists()
