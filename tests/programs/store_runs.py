"""Stores whole run folders of the first version (0.1.0), without their weights: what the report must still read.

    PYTHONPATH=first_version python tests/programs/store_runs.py tests/data/first_version_runs
"""
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

SMALL = dict(preset="few", image_size=8, train_images=50, epochs=2, batch_size=25, probe_epochs=2,
             device="cpu", precision="float32")
RUNS = [dict(method="mixsupcon"), dict(method="moco_imix", queue=50), dict(method="ce"), dict(method="swav_unmix"),
        dict(method="mixsiam", together="head", seed=1)]
LEFT_OUT = ".lock", "*.safetensors", "*.png"


def main(root):
    from mixsupcon.config import configure
    from mixsupcon.results import measured
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for given in RUNS:
            folder = measured(configure(**SMALL | given), Path(place))
            kept = root/folder.name
            shutil.copytree(folder, kept, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
            visits = [visit | dict(commit=None) for visit in json.loads((kept/"env.json").read_text())]
            (kept/"env.json").write_text(json.dumps(visits, indent=1) + "\n")


main(Path(sys.argv[1]))
