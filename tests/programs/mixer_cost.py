"""What each mixer costs: seconds of a training step, and how many times those of MixUp.

    OMP_NUM_THREADS=2 python tests/programs/mixer_cost.py                    # ResNet-18 on 100 images of 32 pixels
    OMP_NUM_THREADS=2 python tests/programs/mixer_cost.py --arch resnet8 --repeat 9

Prints a Markdown table. A step is views, mixing, forward, backward and the optimiser; the methods are cross-entropy
with each mixer, AutoMix and AMix with clean images and mixtures, and MoCo v2 with AMix-I and AMix-C. Mixers take turns,
so that a busy moment hits them all; each figure is the median of the turns.
"""
import argparse
import platform
import statistics
import time
from datetime import date

import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import stream
from mixsupcon.lab.data import make_dataset
from mixsupcon.lab.train import Learner, compute_loss, fill_clusters, resolve_device, update_weights

MIXERS = ("mixup", "cutmix", "resizemix", "fmix", "manifoldmix", "saliencymix", "puzzlemix", "comixup")
ROWS = {"none": ("ce", dict(mixer="none"))} | {mixer: ("ce", dict(mixer=mixer)) for mixer in MIXERS} | {
    "AutoMix (clean and mixed)": ("automix", {}), "AMix (clean and mixed)": ("amix", {}),
    "MoCo v2": ("moco", dict(queue=1000)), "MoCo v2, MixUp, cross-view": ("moco_mix", dict(queue=1000)),
    "MoCo v2, AMix-I": ("amix_i", dict(queue=1000)), "MoCo v2, AMix-C": ("amix_c", dict(queue=1000, clusters=20))}


def learner_of(method, given, data, batch, arch, device):
    "A configuration and its learner, clusters filled where it has them."
    cfg = resolve_device(configure(method, arch=arch, batch_size=batch, epochs=10, device=device, **given))
    learner = Learner(cfg, data, torch.device(cfg.device))
    if hasattr(learner.net, "clusters"):
        fill_clusters(cfg, learner.net, data.train_x.to(cfg.device), data)
    learner.net.train()
    return cfg, learner


def seconds_of(cfg, learner, data, number):
    "How long one step takes."
    rows = torch.arange(cfg.batch_size).to(cfg.device)
    x, y = data.train_x[:cfg.batch_size].to(cfg.device), data.train_y[:cfg.batch_size].to(cfg.device)
    start = time.perf_counter()
    step = compute_loss(cfg, learner, x, y, data, number, 1, rows)
    learner.optimizer.zero_grad()
    step.loss.backward()
    update_weights(cfg, learner, 1e-3, number, 100, step.new_keys)
    step.loss.item()   # on a GPU: waits for the step
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    images = torch.randint(256, (asked.batch, 3, asked.side//8, asked.side//8), generator=stream(0, "x")).float()
    smooth = torch.nn.functional.interpolate(images, size=asked.side, mode="bilinear").byte()
    classes = [str(i) for i in range(10)]
    y = torch.arange(asked.batch) % 10
    data = make_dataset(smooth, y, smooth, y, classes)
    learners = {name: learner_of(method, given, data, asked.batch, asked.arch, asked.device)
                for name, (method, given) in ROWS.items()}
    times = {name: [] for name in ROWS}
    for turn in range(asked.repeat + 1):
        for name, (cfg, learner) in learners.items():
            seconds = seconds_of(cfg, learner, data, turn)
            if turn:   # the first warms up
                times[name].append(seconds)
    plain = statistics.median(times["mixup"])
    sizes = f"{asked.arch}, {asked.batch} images of {asked.side} pixels, median of {asked.repeat}"
    machine = f"{asked.device}, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    print(f"{sizes}; {machine}; {date.today()}\n")
    print("| mixer | seconds a step | times MixUp's |\n|---|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds):.3f} | {statistics.median(seconds)/plain:.2f} |")


if __name__ == "__main__":
    main()
