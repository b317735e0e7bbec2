"Quality beside accuracy: calibration, corrupted images, wrong and few labels, against loops and other libraries."
import io
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mixsupcon.core.configure import Figure, Paper, Study, configure
from mixsupcon.core.corruptions import CORRUPTIONS, SEVERITIES, affine_places, corrupt, moved_blur, neighbours, sampled
from mixsupcon.core.options import Refusal, stream
from mixsupcon.lab import evaluate
from mixsupcon.lab.command import run_studies
from mixsupcon.lab.evaluate import linear_of
from mixsupcon.lab.experiment import Result, experiment, show_figure
from mixsupcon.lab.quality import (
    WRONG, brier, calibration_error, corruption_table, few_label_accuracies, few_rows, negative_log_likelihood,
    probes_of, quality_of, reliability, wrong_labels)
from mixsupcon.lab.runs import RunError, check_seal
from mixsupcon.report.publish import ARCHIVE, records_in, write_report
from mixsupcon.report.tables import numbers_of, run_table, runs_to_measure
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

FALLING = "glass blur", "frost (approximate)", "elastic"   # whose severities the paper does not order by distance
QUICK = dict(train_images=100, image_size=8, epochs=6, probe_epochs=8, device="cpu")


@cache
def pictures(n=12, side=32):
    "Cuts from the two photographs that come with scikit-learn, at a quarter of their size, (n, 3, side, side) uint8."
    photos = np.stack(load_sample_images().images).transpose(0, 3, 1, 2)
    small = F.interpolate(torch.tensor(photos), scale_factor=.25, mode="bilinear", antialias=True)   # (2, 3, 106, 160)
    cuts = small[..., :side*(106//side), :side*(160//side)].unfold(2, side, side).unfold(3, side, side)
    return cuts.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)[::2][:n].contiguous()


def distances(name, x):
    "The mean squared distance of corrupted images from `x`, by severity."
    return [(corrupt(x, name, severity).float() - x).square().mean().item() for severity in SEVERITIES]


def logits_and_labels(n=400, classes=5):
    gen = stream(0, "logits")
    return 3*torch.randn(n, classes, generator=gen), torch.randint(classes, (n,), generator=gen)


# ---- calibration

@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_calibration_error_is_the_naive_loops(bins):
    logits, y = logits_and_labels()
    p, total = logits.double().softmax(1), 0
    for i in range(bins):
        inside = [n for n in range(len(y)) if i/bins < p[n].max() <= (i + 1)/bins]
        if inside:
            right = sum(int(p[n].argmax() == y[n]) for n in inside)/len(inside)
            sure = sum(p[n].max().item() for n in inside)/len(inside)
            total += len(inside)/len(y)*abs(right - sure)
    assert calibration_error(logits, y, bins) == pytest.approx(total, abs=1e-12)
    assert reliability(logits, y, bins)["count"].sum() == len(y)


def test_likelihood_and_brier_are_scikit_learns_and_the_loops():
    from sklearn.metrics import log_loss
    logits, y = logits_and_labels()
    p = logits.double().softmax(1)
    loops = [sum((p[n, c].item() - (c == y[n]).item())**2 for c in range(5)) for n in range(len(y))]
    assert negative_log_likelihood(logits, y) == pytest.approx(log_loss(y, p.numpy(), labels=range(5)), abs=1e-9)
    assert brier(logits, y) == pytest.approx(np.mean(loops), abs=1e-12)
    two = torch.stack([torch.zeros(len(y)), logits[:, 0]], 1)   # two classes: twice scikit-learn's
    from sklearn.metrics import brier_score_loss
    theirs = brier_score_loss(y > 1, two.double().softmax(1)[:, 1].numpy())
    assert brier(two, (y > 1).long()) == pytest.approx(2*theirs, abs=1e-9)


def test_impossible_labels_cost_no_infinite_likelihood_before_they_must():
    "In float64, and from logits: a probability that rounds to 0 has a finite log."
    assert negative_log_likelihood(torch.tensor([[900., 0.]]), torch.tensor([1])) == pytest.approx(900)


# ---- corruptions

@pytest.mark.parametrize("side", [16, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_uint8_and_the_same_for_the_same_seed(name, side):
    x = pictures(4, side)
    before, seen = x.clone(), corrupt(x, name, 3)
    assert seen.dtype == torch.uint8 and seen.shape == x.shape and torch.equal(x, before)
    assert torch.equal(seen, corrupt(x, name, 3)) and not torch.equal(seen, x)
    others = corrupt(x, name, 3, seed=1), corrupt(x, name, 3, first=4)
    calm = name in ("defocus blur", "zoom blur", "brightness", "contrast", "pixelate", "JPEG")   # nothing is drawn
    assert all(torch.equal(seen, other) == calm for other in others)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in FALLING])
def test_a_severer_corruption_is_farther_from_the_image(name):
    found = distances(name, pictures())
    assert all(b > .999*a for a, b in zip(found, found[1:])) and found[4] > 1.3*found[0] > 0, found


def test_severities_that_are_no_distances():
    "Glass moves pixels twice in the last two, frost has more ice, elastic shifts more finely."
    places = torch.arange(32*32.).view(1, 1, 32, 32)
    once = neighbours(places, stream(0, "a"))
    twice = neighbours(once, stream(0, "b"))
    assert (places - twice).mean() > 1.5*(places - once).mean() > 0
    found = distances("frost (approximate)", pictures())
    assert found[0] < found[1] < found[2]
    ramp = (8*torch.arange(32, dtype=torch.uint8)).expand(20, 3, 32, 32)
    bent = [corrupt(ramp, "elastic", severity)[..., 8:24, 8:24].float().diff(3).abs().mean() for severity in SEVERITIES]
    assert bent[1] < bent[2] < bent[3] < bent[4] > 3*bent[0], bent   # an affine map leaves it even, but for rounding


def test_noise_has_the_variance_of_its_law():
    grey = torch.full((20, 3, 32, 32), 127, dtype=torch.uint8)   # 127.5 cut, so half a level is added below
    for name, variances in {"gaussian noise": [.04**2, .1**2], "shot noise": [.498/500, .498/50]}.items():
        for severity, variance in zip((1, 5), variances):
            seen = (corrupt(grey, name, severity).double() + .5)/255
            assert seen.var() == pytest.approx(variance, rel=.03) and seen.mean() == pytest.approx(.498, abs=.001)
    for severity, share in zip(SEVERITIES, (.01, .02, .03, .05, .07)):
        seen = corrupt(grey, "impulse noise", severity)
        assert (seen == 0).double().mean() == pytest.approx(share/2, abs=.004)
        assert (seen == 255).double().mean() == pytest.approx(share/2, abs=.004)


def test_contrast_keeps_each_channels_mean_and_brightness_adds_to_the_value():
    x = pictures()
    for severity, share in zip(SEVERITIES, (.75, .5, .4, .3, .15)):
        seen = corrupt(x, "contrast", severity).double()
        assert (seen.mean((2, 3)) - x.double().mean((2, 3))).abs().max() < 1          # cut to whole numbers
        assert (seen.std((2, 3)) - share*x.double().std((2, 3))).abs().max() < 1
    for severity, more in zip(SEVERITIES, (.05, .1, .15, .2, .3)):
        value = corrupt(x, "brightness", severity).amax(1).double()
        assert (value - (x.amax(1) + 255*more).clamp(max=255)).abs().max() <= 1
    assert (corrupt(torch.zeros_like(x), "brightness", 5) == 76).all()   # black becomes grey: .3 of 255


@pytest.mark.parametrize("side", [15, 32, 48])
def test_pixelate_and_jpeg_are_pillows(side):
    for image in pictures(4, side):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        for severity, (share, quality) in enumerate(zip((.95, .9, .85, .75, .65), (80, 65, 58, 50, 40)), 1):
            small = (int(side*share),)*2
            blocks = picture.resize(small, Image.BOX).resize((side, side), Image.BOX)
            picture.save(file := io.BytesIO(), "JPEG", quality=quality)
            for name, theirs in ("pixelate", blocks), ("JPEG", Image.open(file)):
                ours = corrupt(image[None], name, severity)[0].permute(1, 2, 0).int().numpy()
                assert abs(ours - np.array(theirs).astype(int)).max() <= 1, name


def test_zoom_blur_is_the_mean_of_scipys_enlargements():
    from scipy.ndimage import zoom
    x = pictures(2)
    for severity, top in zip(SEVERITIES, (1.06, 1.11, 1.16, 1.21, 1.26)):
        factors = np.arange(1, top, .01)
        image, total = x[0, 1].double().numpy()/255, 0
        for factor in factors:
            part = int(np.ceil(32/factor))
            start = (32 - part)//2
            big = zoom(image[start:start + part, start:start + part], factor, order=1)
            start = (len(big) - 32)//2
            total = total + big[start:start + 32, start:start + 32]
        theirs = 255*(image + total)/(len(factors) + 1)
        assert abs(corrupt(x, "zoom blur", severity)[0, 1].numpy() - theirs).max() < 1.01


def test_glass_takes_neighbours_as_a_loop_from_the_last_pixel_does():
    "Each pixel, from the last to the first, takes the present value of one left or above."
    x = torch.arange(10*12.).view(1, 1, 10, 12)
    ours = neighbours(x, stream(3, "loop"))
    gen, theirs = stream(3, "loop"), x[0, 0].clone()
    up, left = (torch.rand(1, 10, 12, generator=gen) < .5 for _ in range(2))
    for row in range(9, 1, -1):
        for column in range(11, 1, -1):
            theirs[row, column] = theirs[row - int(up[0, row, column]), column - int(left[0, row, column])]
    assert torch.equal(ours[0, 0], theirs)


def test_motion_is_a_loop_over_the_line():
    x, angles = torch.rand(3, 2, 9, 11, generator=stream(0, "x")), torch.tensor([0., 30., -100.])
    weight = np.exp(-np.arange(9)**2/(2*1.5**2))
    weight /= weight.sum()
    theirs = torch.zeros_like(x)
    for n, angle in enumerate(np.deg2rad(angles.numpy().astype(np.float64))):
        for row in range(9):
            for column in range(11):
                for step, share in enumerate(weight):
                    r = min(max(row + int(np.ceil(step*np.sin(angle) - .5)), 0), 8)
                    c = min(max(column + int(np.ceil(step*np.cos(angle) - .5)), 0), 10)
                    theirs[n, :, row, column] += float(share)*x[n, :, r, c]
    assert torch.allclose(moved_blur(x, angles, 4, 1.5), theirs, atol=1e-5)


def test_elastic_samples_as_scipy_does():
    from scipy.ndimage import map_coordinates
    x, gen = pictures(1)[:, :1].float(), stream(0, "places")
    here = affine_places(1, (32, 32), 0., gen)
    assert torch.allclose(here[0, 3, 7], torch.tensor([7., 3.]), atol=1e-4)   # x first
    at = here + 6*torch.rand(here.shape, generator=gen) - 3
    for corners, mode in (False, "reflect"), (True, "mirror"):
        theirs = map_coordinates(x[0, 0].double().numpy(), at[0].flip(-1).movedim(-1, 0).numpy(), order=1, mode=mode)
        assert np.abs(sampled(x, at, corners)[0, 0].numpy() - theirs).max() < .02


def test_three_points_move_as_far_as_they_may():
    "The affine map takes the moved points back to where they were."
    at = affine_places(200, (33, 33), 2.5, stream(0, "affine"))
    inner = at[:, 6:27, 6:27]   # between the three points
    still = affine_places(1, (33, 33), 0., stream(0, "affine"))[:, 6:27, 6:27]
    moved = (inner - still).abs()
    assert moved.amax() < 8 and moved.mean() > .5 and (inner - still).mean().abs() < .2


def test_what_cannot_be_corrupted_is_refused():
    x = pictures(2)
    for given in (x.float(), "fog", 1), (x[:, :1], "fog", 1), (x[..., :3], "fog", 1), (x, "fogg", 1), (x, "fog", 0):
        with pytest.raises(Refusal):
            corrupt(*given)


# ---- labels

@pytest.mark.parametrize("share", WRONG)
@pytest.mark.parametrize("classes", [2, 10])
def test_exactly_a_share_of_the_labels_is_wrong(share, classes):
    y = torch.arange(103) % classes
    noisy = wrong_labels(y, share, classes, stream(0, "wrong"))
    assert (noisy != y).sum() == round(share*103) and noisy.min() >= 0 and noisy.max() < classes


def test_every_wrong_class_is_as_likely():
    from scipy.stats import chisquare
    y = torch.zeros(9000, dtype=torch.long)
    noisy = wrong_labels(y, .8, 10, stream(0, "wrong"))
    assert chisquare(noisy.bincount(minlength=10)[1:].numpy()).pvalue > .001


def test_few_labels_are_balanced_and_larger_draws_hold_smaller_ones():
    y = torch.cat([torch.zeros(9), torch.ones(50), torch.full((20,), 2)]).long()
    rows = {k: few_rows(y, k, stream(0, "few")) for k in (1, 5, 9)}
    assert all(y[some].bincount().tolist() == [k]*3 and len(some.unique()) == 3*k for k, some in rows.items())
    assert {*rows[1].tolist()} < {*rows[5].tolist()} < {*rows[9].tolist()}
    h = F.one_hot(y, 4).float()
    curves = few_label_accuracies(h, y, h, y)
    assert [*curves] == [1, 5] and all(values == [1.]*10 for values in curves.values())   # 10 of a class are not there


# ---- runs

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A classifier and SupCon, trained for seconds."
    root = tmp_path_factory.mktemp("runs")
    return {method: experiment(method, root, **QUICK) for method in ("supcon", "ce")}


@pytest.mark.slow
@pytest.mark.parametrize("method, probe", [("supcon", {}), ("ce", dict(probe="lin_imix", probe_lrs=".1 .5")),
                                           ("supcon", dict(probe="lin_simsiam"))])
def test_the_probe_trained_again_is_the_same(method, probe, tmp_path):
    "By its predictions of every test image, as the confusion matrix of the first has them."
    run = experiment(method, tmp_path, **QUICK | probe)
    given = linear_of(run.trained)
    layer, = probes_of(run.trained, given["probe"]["probe_lr"], [run.trained.train_y])
    predicted = layer(run.trained.test_h).argmax(1)
    matrix = torch.zeros(10, 10, dtype=torch.long).index_put_((run.trained.test_y, predicted), torch.tensor(1), True)
    assert matrix.tolist() == given["confusion"]


@pytest.mark.slow
def test_shuffled_labels_give_chance(trained):
    "A probe of labels that say nothing, and features of a diverse set, is right by chance: within 4 standard errors."
    run, n = trained["supcon"].trained, len(trained["supcon"].trained.test_y)
    reached = []
    for i in range(5):
        y = run.train_y[torch.randperm(len(run.train_y), generator=stream(i, "shuffled"))]
        layer, = probes_of(run, .5, [y])
        other = run.test_y[torch.randperm(n, generator=stream(i, "of the test"))]
        reached.append(((layer(run.test_h).argmax(1) == run.test_y).double().mean().item(),
                        (layer(run.test_h).argmax(1) == other).double().mean().item()))
    own, random = np.mean(reached, 0)
    assert abs(random - .1) < 4*(.09/n/5)**.5 and abs(own - .1) < .1 < trained["supcon"].accuracy - .3


@pytest.mark.slow
def test_the_quality_of_a_run(trained):
    "Measured once, sealed, shown when it is there; the run itself stays as it was."
    run = Result(trained["ce"].folder)
    before, names = check_seal(run.folder), list(run.figures)
    assert "quality" not in names and np.isnan(numbers_of(run.folder)["corrupted"])
    result = run.quality
    assert check_seal(run.folder) == before and list(run.figures) == [*names, "quality"]
    values = {(row["protocol"], row["metric"]): row["value"] for row in result["rows"]}
    numbers = numbers_of(run.folder)
    assert numbers["linear"] == run.accuracy == values[run.cfg.probe, "accuracy_wrong_0"]
    assert numbers["own corrupted"] == values["own_head", "corrupted_accuracy"] < numbers["own head"]
    head, trainer = run.trained.net.head, run.trained
    x, y = trainer.data.test_x, trainer.test_y
    with torch.no_grad():
        assert numbers["own calibration error"] == calibration_error(head(trainer.test_h), trainer.test_y)
        assert numbers["own Brier"] == brier(head(trainer.test_h), trainer.test_y)
        fog = (head(trainer.features(corrupt(x, "fog", 4))).argmax(1) == y).double().mean().item()
    table = corruption_table(result, "own_head")
    assert table.loc["fog", 4] == pytest.approx(100*fog) and len(table) == 15
    assert table["mean"].mean() == pytest.approx(100*numbers["own corrupted"])
    assert numbers["few labels"] == pytest.approx(np.mean(result["few"]["5"]))
    assert quality_of(Result(run.folder).trained) == result and len(run_table([run.folder])) == len(before["rows"])
    assert len(run.figures["quality"].axes) == 4 and run.quality == result
    assert show_figure(run, "quality").data == (run.folder/"quality.png").read_bytes()


@pytest.mark.slow
def test_a_report_shows_quality_and_keeps_its_records(trained, tmp_path):
    "Tables, figures and archive of a study that names it; runs of which none is measured are those to measure."
    rows = {name: dict(method=name) for name in trained}
    kinds = Figure("quality", "Beside accuracy"), Figure("corruptions", "By corruption")
    shows = "calibration error", "own Brier", "corrupted", "noisy labels", "few labels"
    study = Study("Quality", rows, "supcon", {"digits": QUICK}, seeds=1, shows=shows, figures=kinds)
    papers = dict(test=Paper("A test", "", {}, lambda scale: dict(beside=study)))
    root = trained["ce"].folder.parent
    assert {*runs_to_measure("small", root, papers)} <= {run.folder for run in trained.values()}
    for run in trained.values():
        run.quality
    assert runs_to_measure("small", root, papers) == []
    made, drawings, out = write_report("small", root, tmp_path/"report", papers)
    assert all(drawing.figure and not drawing.problem for drawing in drawings.values()) and len(drawings) == 2
    words = made.words["beside"][1].set_index("row")
    mean = f"{100*numbers_of(trained['ce'].folder)['corrupted']:.1f}"
    assert words.loc["ce", "corrupted images (3 of 15 kinds approximate)"] == mean
    assert words.loc["supcon", "own classifier's Brier score"] == "–" != words.loc["ce", "own classifier's Brier score"]
    kept = {name for _, name in records_in((out/ARCHIVE).read_bytes())}
    assert {"quality.json", "linear.json"} <= kept and "net.safetensors" not in kept
    from_records = write_report("small", tmp_path/"none", out, papers)[0]
    assert from_records.words["beside"][1].equals(made.words["beside"][1])


@pytest.mark.slow
def test_studies_in_one_process(tmp_path):
    "Missing runs are trained and measured, those that cannot be are named at the end, and the report is written."
    rows = dict(supcon=dict(method="supcon"), ce=dict(method="ce"), missing=dict(dataset="cifar10", data_dir="nowhere"))
    asked = Study("Asked for", rows, "supcon", {"digits": QUICK | dict(epochs=2)}, seeds=1, shows=("Brier",))
    other = Study("Another", dict(long=dict(epochs=500)), "long", {"digits": QUICK}, seeds=1)
    papers = dict(test=Paper("A test", "", {}, lambda scale: dict(asked=asked, other=other)))
    place = tmp_path/"runs", tmp_path/"report", papers
    with pytest.raises(RunError, match="mixsupcon, seed 0: CIFAR10 is not in"):
        run_studies("small", ("asked",), *place)
    made = {path: path.stat().st_mtime_ns for path in place[0].rglob("*.json") if path.name != "env.json"}
    assert len([path for path in made if path.name == "quality.json"]) == 2
    table = pd.read_csv(tmp_path/"report"/"tables"/"asked.csv").set_index("row")
    assert table["Brier mean"].notna().to_dict() == dict(supcon=True, ce=True, missing=False)
    with pytest.raises(RunError):
        run_studies("small", ("asked",), *place)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what is there is left as it is"


@pytest.mark.slow
def test_a_changed_record_of_quality_is_refused(trained):
    run = trained["ce"]
    known, path = run.quality, run.folder/"quality.json"
    text = path.read_bytes()
    path.write_text(json.dumps(known | dict(rows=[])))
    for read in (lambda: numbers_of(run.folder), lambda: run.quality):
        with pytest.raises(RunError, match="changed since it was written"):
            read()
    path.write_bytes(text)
    assert run.quality == known


def test_a_map_shows_two_thousand_test_images_of_all_classes(tmp_path, monkeypatch):
    "Folders hold images in order of their classes; the map takes them evenly, each with its own class."
    y = torch.arange(5000)//500
    data = SimpleNamespace(test_y=y, classes=[*"abcdefghij"])
    run = SimpleNamespace(folder=tmp_path, weights="", device="cpu", cfg=configure("supcon"), data=data, test_y=y,
                          test_h=torch.arange(10_000).reshape(5000, 2))
    monkeypatch.setitem(evaluate.MAPS, "tsne", lambda h, seed: h.numpy())
    monkeypatch.setattr(evaluate, "map_numbers", lambda trained: {})
    shown = evaluate.map_of(run)
    assert np.bincount(shown["y"]).tolist() == [200]*10
    assert shown["y"] == [y[first//2].item() for first, _ in shown["xy"]]
