"The studies on photographs: what was tried beforehand takes no part in them."
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from mixsupcon.core.configure import SCALES, configure
from mixsupcon.core.options import values
from mixsupcon.lab.data import digest
from mixsupcon.lab.encoders import load_encoder
from mixsupcon.lab.experiment import experiment
from mixsupcon.papers.photos import mixing
from mixsupcon.report.studies import jobs, plan, run_key

ROOT = Path(__file__).parents[1]
PILOT, ENCODERS = ROOT/"nbs"/"papers"/"07_photos_pilot.csv", ROOT/"outputs"/"pretrained"


@pytest.mark.parametrize("scale", ["photos", "gpu"])
def test_pilot_and_studies_share_no_seed(scale):
    "The sizes were chosen on other seeds than those that are judged."
    planned = {run.seed for run in plan(scale)}
    assert planned and planned.isdisjoint(pd.read_csv(PILOT).seed)
    assert min(planned) == SCALES[scale].first


def test_the_pilot_tried_what_the_studies_have():
    "Images, epochs and batch of both recipes are a row of the pilot, for SupCon, MixSupCon and cross-entropy."
    tried = {(row.images, row.epochs, row.batch, row.lr, row.method)
             for row in pd.read_csv(PILOT).itertuples()}
    for run in plan("photos", ("comparison",)):
        if run.row in ("supcon", "mixsupcon"):
            cfg = run.cfg
            assert (cfg.train_images, cfg.epochs, cfg.batch_size, cfg.lr, cfg.method) in tried


def test_runs_trained_again_were_recorded():
    "The accuracies of the first CPU are those of the published runs."
    again = pd.read_csv(PILOT.with_name("07_photos_again.csv"))
    table = pd.read_csv(ROOT/"outputs"/"report"/"photos"/"tables"/"runs.csv")
    published = table[table.study == "linear"].set_index(["data", "row", "seed"]).linear
    keys = list(again[["data", "method", "seed"]].itertuples(index=False, name=None))
    assert len({*keys}) == len(again) == 12 and published.loc[keys].tolist() == again.AVX512.tolist()


def test_quality_is_measured_where_it_is_shown(tmp_path):
    "Notebooks of the rows that are judged beside accuracy measure it, those of other rows do not."
    measuring = {job.parameters["method"] for job in jobs("photos", tmp_path).values() if "quality" in job.parameters}
    assert measuring == {"simclr", "supcon", "mixsupcon", "ce"}


HEADLINE = [(preset, row) for preset in ("photos300", "photos2500") for row in ("simclr", "supcon", "mixsupcon", "ce")]


@pytest.mark.parametrize("preset, row", HEADLINE)
def test_committed_encoders(preset, row):
    "Those of the first seed of linear evaluation: small, of the study's own recipe, and loaded in three lines."
    folder = ENCODERS/f"{preset}-{row}"
    made = json.loads((folder/"config.json").read_text())
    run, = [run for run in plan("photos", ("linear",)) if (run.cfg.preset, run.row, run.seed) == (preset, row, 10)]
    planned = values(run.cfg)
    differ = {name for name in made["options"].keys() & planned.keys() if made["options"][name] != planned[name]}
    assert made["method"] == row and differ <= {"device", "data_dir"} and "lr" in made["options"]
    assert (folder/"model.safetensors").stat().st_size <= 400_000

    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net, prepare = load_encoder(folder)
    features = net(prepare(images))
    assert features.shape == (5, 64) and features.isfinite().all() and features.std(0).min() > 0


def test_committed_encoders_are_of_as_many_runs():
    "No folder but those tested, each of another run with weights of its own, and all saw the same data."
    folders = sorted(path.parent for path in ENCODERS.glob("*/config.json"))
    assert {path.name for path in folders} == {f"{preset}-{row}" for preset, row in HEADLINE}
    made = [json.loads((path/"config.json").read_text()) for path in folders]
    weights = {digest((path/"model.safetensors").read_bytes()) for path in folders}
    assert len({each["identity"] for each in made}) == len(weights) == len(folders)
    assert len({each["data_hash"] for each in made}) == 2   # of 300 images and of 2,500


@pytest.mark.parametrize("scale", ["photos", "gpu"])
def test_the_notebook_makes_the_planned_runs(scale, tmp_path):
    "What `run_experiment` gets from a job and from its own parameters' cell is the configuration that was planned."
    cells = json.loads((ROOT/"nbs"/"run_experiment.ipynb").read_text())["cells"]
    exec("".join(next(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))), own := {})
    own = {name: value for name, value in own.items() if value is not None and name in own["__annotations__"]}
    made = set()
    for job in jobs(scale, tmp_path).values():
        given = own | job.parameters
        first, repeats = given.pop("seed"), given.pop("repeats")
        for name in ("wait", "quality"):
            given.pop(name)
        made |= {run_key(configure(**given, seed=seed)) for seed in range(first, first + repeats)}
    planned = plan(scale)
    assert made == {run_key(run.cfg) for run in planned} and {run.cfg.dataset for run in planned} == {"cifar10"}


def test_mixing_is_the_only_difference(tmp_path):
    "The mixed row of SupCon's loss, with its mixer taken away, trains SupCon's network to the bit."
    rows = mixing("photos").rows
    quick = dict(root=tmp_path, tau=.1, epochs=2, train_images=60, batch_size=20, probe_epochs=1)
    plain = experiment(**rows["supcon"], **quick).encoder.state_dict()
    without = experiment("mixsupcon", **rows["supcon + mixup"], mixer="none", **quick).encoder.state_dict()
    mixed = experiment("mixsupcon", **rows["supcon + mixup"], **quick).encoder.state_dict()
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert not all(torch.equal(plain[name], mixed[name]) for name in plain)
