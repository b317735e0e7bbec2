"Controls: where there is nothing to learn nothing is learned, and where methods are the same no difference is called."
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsupcon.core.options import stream
from mixsupcon.lab import data
from mixsupcon.lab.experiment import experiment
from mixsupcon.report.publish import unpack_records
from mixsupcon.report.statistics import holm, paired_p
from mixsupcon.report.tables import paired_differences, results

REPORT = Path(__file__).parents[1]/"outputs"/"report"/"small"
SEEDS = range(4)


def shuffled_digits(data_dir, image_size, download):
    "The digits, whose training labels are dealt anew among the images."
    read = data.DATASETS["digits"](data_dir, image_size, download)
    order = torch.randperm(len(read.train_y), generator=stream(0, "shuffled labels"))
    return read._replace(train_y=read.train_y[order])


@pytest.fixture
def both_data_sets(monkeypatch):
    "The digits with their labels, and with shuffled ones."
    monkeypatch.setitem(data.DATASETS, "shuffled", shuffled_digits)
    return "digits", "shuffled"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supcon", "mixsupcon"])
def test_shuffled_labels_give_chance(method, both_data_sets, tmp_path):
    "Training and probe see shuffled labels; test labels are true. With true ones the same recipe learns."
    small = dict(preset="digits", train_images=200, image_size=8, epochs=10, probe_epochs=10, device="cpu")
    true, shuffled = (
        [experiment(method, tmp_path, dataset=dataset, seed=seed, **small).accuracy for seed in seeds]
        for dataset, seeds in zip(both_data_sets, (SEEDS[:1], SEEDS)))
    assert min(true) > .6
    assert np.mean(shuffled) == pytest.approx(.1, abs=.03) and max(shuffled) < .2


@pytest.fixture(scope="module")
def rows_of_sixteen(tmp_path_factory):
    "By study and row the numbers of the committed report, where there are sixteen seeds."
    records = unpack_records(REPORT, tmp_path_factory.mktemp("records"))
    empty = tmp_path_factory.mktemp("no runs")
    numbers = results("small", ("linear", "comparison"), empty, records=records).numbers
    rows = {key: part for key, part in numbers.groupby(["study", "data", "row"]) if len(part) == 16}
    assert len(rows) >= 8
    return rows


def p_values(pairs):
    "The corrected p value of each pair of rows, compared by seed."
    return holm([paired_p(paired_differences(a, b)) for a, b in pairs])


@pytest.mark.slow
def test_two_copies_of_a_method_do_not_differ(rows_of_sixteen):
    "Eight seeds of each method against eight others of the same method: no difference is called."
    copies = [(part[part.seed < 8].assign(seed=range(8)), part[part.seed >= 8].assign(seed=range(8)))
              for part in rows_of_sixteen.values()]
    assert all(len(paired_differences(*pair)) == 8 and paired_differences(*pair).any() for pair in copies)
    assert p_values(copies).min() > .05


@pytest.mark.slow
def test_as_many_seeds_of_two_methods_do(rows_of_sixteen):
    "The same comparison tells SupCon from SimCLR, so it could have called a difference."
    by_row = {row: part[part.seed < 8] for (study, _, row), part in rows_of_sixteen.items() if study == "linear"}
    assert p_values([(by_row["simclr"], by_row["supcon"])]).max() < .05
