"""Images a second of an ImageNet-shaped folder: torchvision's ImageFolder, v2 transforms and DataLoader, and ours.

    python tests/programs/streaming_speed.py [ROUNDS] [IMAGES] [WORKERS]

Both sides read the same JPEGs of about 500 × 375 pixels, decode them, and make two views of 224 pixels with the same
options (crops of at least 8 % of the photograph, mirror, jitter .4 with hue .1, gray .2, ImageNet's normalisation), in
turns; a round is an epoch of each. With WORKERS 2 the clock counts, and both sides have two: processes there, threads
here beside the one that makes the views. With 0 the CPU time of one process counts, whatever else the machine does;
theirs then loads in that process. One line of JSON: images a second, and the median of the ratios of a round.
"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torchvision

torch.set_num_threads(1)
from mixsupcon.core.configure import configure   # noqa: E402
from mixsupcon.lab import data, streaming   # noqa: E402
from mixsupcon.lab.train import batches_of, step_views, view_kinds   # noqa: E402
from PIL import Image   # noqa: E402
from torchvision.transforms import v2   # noqa: E402

BATCH = 64
SIZES = (375, 500), (500, 375), (333, 500), (400, 500)   # height and width


def paint(root, n):
    "Writes `n` photographs of two classes: soft shapes and noise, about 100 kB each, as ImageNet's are."
    rng = np.random.default_rng(0)
    for i in range(n):
        high, wide = SIZES[i % 4]
        soft = Image.fromarray(rng.integers(0, 256, (high//8, wide//8, 3), dtype=np.uint8)).resize((wide, high))
        noisy = (np.asarray(soft) + rng.normal(0, 12, (high, wide, 3))).clip(0, 255).astype(np.uint8)
        path = root/"photos"/("ant" if i % 2 else "bee")/f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)


def theirs(root, workers):
    "The loader of torchvision: each image gives two views."
    view = v2.Compose([
        v2.RandomResizedCrop(224, scale=(.08, 1)), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(.4, .4, .4, .1)], p=.8), v2.RandomGrayscale(.2),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize((.485, .456, .406), (.229, .224, .225))])
    images = torchvision.datasets.ImageFolder(root/"photos", lambda image: (view(image), view(image)))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    def epoch(number):
        return sum(len(views[0]) for views, _ in loader)
    return epoch


def ours(root, **given):
    "Our views of the same photographs."
    cfg = configure("simclr", dataset="folder", data_dir=str(root/"photos"), image_size=224, batch_size=BATCH,
                    test_share=.1, normalise="imagenet", crop_min=.08, jitter=.4, hue_share=.25, gray=.2, blur=0.,
                    memory_gb=1e-3, **given)
    read = data.load_data(cfg)
    def epoch(number):
        order = batches_of(cfg, len(read.train_x), number)
        seen = 0
        for i, images in enumerate(streaming.step_images(cfg, read.train_x, order, view_kinds(cfg), 0)):
            seen += len(step_views(cfg, images, read.mean, read.std, i)[0])
        return seen
    return epoch



def measure(rounds, n, workers):
    clock = time.perf_counter if workers else time.process_time
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data.project = lambda: root
        paint(root, n)
        sides = dict(torchvision=theirs(root, workers), full=ours(root, crop="full"), square=ours(root),
                     packed=ours(root, pack="on"))
        speeds = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name, epoch in sides.items():
                start = clock()
                seen = epoch(number)
                if number:   # the first starts workers
                    speeds[name].append(seen/(clock() - start))
    ratios = {name: median(a/b for a, b in zip(speeds[name], speeds["torchvision"])) for name in sides}
    print(json.dumps(dict(
        images_a_second={name: round(median(row), 1) for name, row in speeds.items()},
        ratio_to_torchvision={name: round(ratio, 2) for name, ratio in ratios.items()},
        clock="wall" if workers else "CPU", rounds=rounds, images=n, batch=BATCH, torch=torch.__version__,
        torchvision=torchvision.__version__, cores=len(os.sched_getaffinity(0)))))


if __name__ == "__main__":
    measure(*map(int, sys.argv[1:] or ("5", "256", "2")))
