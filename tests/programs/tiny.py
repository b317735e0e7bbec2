"A study that takes seconds, for the tests of what runs studies; as a script: all its runs, under the folder given."
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from mixsupcon.core.configure import SCALES, Paper, Scale, Study
from mixsupcon.lab.experiment import run_missing
from mixsupcon.report import studies

QUICK = dict(preset="digits50", image_size=8, epochs=20, probe_epochs=2, save_seconds=0.)


def two_rows(scale):
    rows = {name: dict(method=name) for name in ("supcon", "ce")}
    return dict(linear=Study("Linear evaluation", rows, "supcon", {"digits": QUICK}))


PAPERS = dict(tiny=Paper("A test", "", {}, two_rows, scales=("tiny",)))


def enter():
    "The scale `tiny` beside the others; the papers' studies are its two rows."
    SCALES["tiny"] = Scale("a test", "cpu", seeds=3, fewer=3, together=3)
    studies.all_papers = lambda: PAPERS


@contextmanager
def scale():
    before = studies.all_papers
    enter()
    try:
        yield
    finally:
        studies.all_papers = before
        del SCALES["tiny"]


def run_all(root):
    torch.set_num_threads(1)
    run_missing(studies.find_runs(studies.plan("tiny"), root)[0], root)


def lines(root):
    "The lines in the logs of all runs."
    return sum(path.read_bytes().count(b"\n") for path in root.glob("*/log.jsonl"))


def killed_at(root, seconds, training):
    "Works in a child that is killed after `seconds`, counted from its first epoch if `training`; whether it was at it."
    child, before, ended = os.fork(), lines(root), (0, 0)
    if not child:
        run_all(root)
        os._exit(0)
    while training and lines(root) <= before and not ended[0]:
        time.sleep(.01)
        ended = os.waitpid(child, os.WNOHANG)
    if ended[0]:
        return False
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


if __name__ == "__main__":
    enter()
    root, kills, rng, killed = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0), 0
    while killed < kills and killed_at(root, rng.uniform(0, .2), killed % 3):
        killed += 1
    run_all(root)
    print(killed)
