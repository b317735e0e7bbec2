"The studies on photographs: what was tried beforehand takes no part in them."
from pathlib import Path

import pandas as pd
import pytest
from mixsupcon.core.configure import SCALES
from mixsupcon.report.studies import jobs, plan

PILOT = Path(__file__).parents[1]/"nbs"/"papers"/"07_photos_pilot.csv"


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


def test_quality_is_measured_where_it_is_shown(tmp_path):
    "Notebooks of the rows that are judged beside accuracy measure it, those of other rows do not."
    measuring = {job.parameters["method"] for job in jobs("photos", tmp_path).values() if "quality" in job.parameters}
    assert measuring == {"simclr", "supcon", "mixsupcon", "ce"}
