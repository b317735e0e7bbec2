"""Trains each method three epochs straight, and again with kill -9 in the middle of the third; prints what differs.

    python tests/programs/killed.py FOLDER [METHOD ...]

A program of its own: it forks from one warm process, which must not have computed with several threads before.
"""
import itertools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import IPython.display   # noqa: F401 -- here and not in every child
import safetensors.torch   # noqa: F401
import scipy.special   # noqa: F401
import torch
import torch._dynamo   # noqa: F401 -- which the first optimiser of a process imports

torch.set_num_threads(1)
from mixsupcon.core.configure import configure   # noqa: E402
from mixsupcon.core.methods import METHODS   # noqa: E402
from mixsupcon.core.options import identity   # noqa: E402
from mixsupcon.lab.data import fingerprint, load_data   # noqa: E402
from mixsupcon.lab.runs import checkpoints, open_run, pack, read_log, unpack, write   # noqa: E402
from mixsupcon.lab.train import Learner, resolve_device, train   # noqa: E402


def train_whole(cfg, data, root):
    "Train as `pretrain` does, and keep every tensor: weights, buffers, momentum."
    cfg, data_hash = resolve_device(cfg), fingerprint(data)
    folder = open_run(cfg, data_hash, root)
    learner = Learner(cfg, data, torch.device("cpu"))
    train(cfg, learner, folder, data, identity(cfg, data_hash))
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(folder)]
    write(folder/"all.safetensors", pack(learner.tensors(), dict(rows=rows)))


def fork(work, until=None):
    "Run `work` in a child; kill it without warning when `until()` is true. True if it was killed."
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        os._exit(0)
    while until:
        time.sleep(.002)
        if until():
            os.kill(child, signal.SIGKILL)
            break
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def folder_of(root):
    return next(iter(root.iterdir()))


def ended(root):
    "What training left behind, by name: the bytes of every tensor, and the log."
    tensors, state = unpack((folder_of(root)/"all.safetensors").read_bytes())
    log = dict(log=json.dumps(state["rows"]), lines=len(read_log(folder_of(root))))
    return {k: v.numpy().tobytes() for k, v in tensors.items()} | log


def in_third_epoch(root, wait):
    "A function that says whether the second epoch is saved, and `wait` seconds of the third are over."
    ticks = itertools.count()

    def due():
        saved = root.exists() and [path for folder in root.iterdir() for path in checkpoints(folder)]
        second = saved and any(path.name.startswith("checkpoint-00000002") for path in saved)
        return bool(second) and next(ticks)*.002 > wait
    return due


def compare(method, number, root):
    "What differs between a straight training, one that was killed and resumed, and one with another seed."
    given = dict(method=method, image_size=8, train_images=64, batch_size=32, epochs=3, save_seconds=0.)
    cfg = configure(**given)
    data = load_data(cfg)
    straight, broken, other = (root/f"{method}-{how}" for how in ("straight", "killed", "other"))
    begun = time.monotonic()
    fork(lambda: train_whole(cfg, data, straight))
    epoch = (time.monotonic() - begun)/3
    for share in (.2 + .1*(number % 6), .1, 0.):   # sooner, if a busy machine missed the moment
        shutil.rmtree(broken, ignore_errors=True)
        killed = fork(lambda: train_whole(cfg, data, broken), in_third_epoch(broken, epoch*share))
        if killed:
            break
    left = [int(path.name.split("-")[1]) for path in checkpoints(folder_of(broken))]
    fork(lambda: train_whole(cfg, data, broken))
    a, b = ended(straight), ended(broken)
    differ = [k for k in a if a[k] != b.get(k)] + sorted({*b} - {*a})
    found = dict(killed=killed, left=left, tensors=len(a) - 2, differ=differ)
    if number % 6 == 0:   # the comparison can fail
        fork(lambda: train_whole(configure(**given, seed=1), data, other))
        control = ended(other)
        found |= dict(control=sum(a[k] != control.get(k) for k in a))
    return found


if __name__ == "__main__":
    chosen = sys.argv[2:] or METHODS
    print(json.dumps({method: compare(method, i, Path(sys.argv[1])) for i, method in enumerate(chosen)}))
