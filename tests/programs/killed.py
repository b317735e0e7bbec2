"""Trains each method four epochs straight, and again with kill -9 in the middle of the third; prints what differs.

A program of its own: it forks from one warm process, which must not have computed with several threads before.
"""
import itertools
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

torch.set_num_threads(1)
from mixsupcon.config import configure, identity   # noqa: E402
from mixsupcon.data import fingerprint, load_data   # noqa: E402
from mixsupcon.methods import METHODS   # noqa: E402
from mixsupcon.runs import checkpoints, open_run, pack, read_log, unpack, write   # noqa: E402
from mixsupcon.train import Learner, settled, train   # noqa: E402


def whole_training(cfg, data, root):
    "Trains as `pretrain` does, and keeps every tensor: weights, buffers, momentum."
    cfg, data_hash = settled(cfg), fingerprint(data)
    folder = open_run(cfg, data_hash, root)
    learner = Learner(cfg, data, torch.device("cpu"))
    rows = train(cfg, learner, folder, data, dict(identity=identity(cfg, data_hash), config=asdict(cfg), data=data_hash))
    write(folder/"all.safetensors", pack(learner.tensors(), dict(rows=[{k: v for k, v in row.items() if k != "seconds"} for row in rows])))


def forked(work, until=None):
    "Runs `work` in a child; kills it without warning when `until()` is true. True if it was killed."
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
    tensors, state = unpack((folder_of(root)/"all.safetensors").read_bytes())
    return {k: v.numpy().tobytes() for k, v in tensors.items()} | {"log": json.dumps(state["rows"]), "lines": len(read_log(folder_of(root)))}


def main(root):
    report = {}
    for i, method in enumerate(METHODS):
        small = dict(method=method, image_size=8, train_images=320, epochs=4, save_seconds=0.)
        cfg = configure(**small)
        data = load_data(cfg)
        straight, broken = root/f"{method}-straight", root/f"{method}-killed"
        begun = time.monotonic()
        forked(lambda: whole_training(cfg, data, straight))
        epoch = (time.monotonic() - begun)/4

        def due(share):
            "Whether two epochs are over and that share of the third."
            ticks = itertools.count()

            def now():
                begun = broken.exists() and list(broken.iterdir()) and len(read_log(folder_of(broken))) >= 2
                return bool(begun) and next(ticks)*.002 > epoch*share
            return now
        for share in (.2 + .1*(i % 6), .1, 0.):   # sooner, if a busy machine missed the moment
            shutil.rmtree(broken, ignore_errors=True)
            killed = forked(lambda: whole_training(cfg, data, broken), due(share))
            if killed:
                break
        left = [int(path.name.split("-")[1]) for path in checkpoints(folder_of(broken))]
        forked(lambda: whole_training(cfg, data, broken))
        a, b = ended(straight), ended(broken)
        other = root/f"{method}-other"
        forked(lambda: whole_training(configure(**small, seed=1), data, other))
        control = ended(other)
        report[method] = dict(killed=killed, left=left, tensors=len(a) - 2, differ=[k for k in a if a[k] != b.get(k)] + sorted(set(b) - set(a)),
                              control=sum(a[k] != control.get(k) for k in a))
    print(json.dumps(report))


main(Path(sys.argv[1]))
