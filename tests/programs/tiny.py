"A study that takes seconds, for the tests of what runs studies; as a script: all its runs, under the folder given."
import os
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from mixsupcon import studies, tables

TINY = studies.Scale("a test", {"digits": dict(preset="few", image_size=8, epochs=40, probe_epochs=2, save_seconds=0.)}, (1.,), 3, 3, "cpu")


def only_two(scale):
    return dict(linear=studies.Study("Linear evaluation", studies.methods("supcon", "ce"), "supcon", TINY.data))


def enter():
    "The scale `tiny` beside the others, and its two rows."
    studies.SCALES["tiny"] = TINY
    studies.studies = tables.studies = only_two


@contextmanager
def scale():
    before = studies.studies
    enter()
    try:
        yield
    finally:
        studies.studies = tables.studies = before
        del studies.SCALES["tiny"]


def killed_at(root, seconds):
    "Works in a child that is killed after `seconds`; whether it was still at it."
    child = os.fork()
    if not child:
        performed(root)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def performed(root):
    torch.set_num_threads(1)
    studies.performed("tiny", ["linear"], root)


if __name__ == "__main__":
    enter()
    root, kills, rng, killed = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0), 0
    while killed < kills and killed_at(root, rng.uniform(.05, .4)):
        killed += 1
    performed(root)
    print(killed)
