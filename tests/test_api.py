"Python, as the README says it: an experiment's numbers, log, figures and encoder; names that cost nothing to import."
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import Refusal
from mixsupcon.lab import evaluate, runs, train
from mixsupcon.lab.data import load_data
from mixsupcon.lab.experiment import (
    Result, command_of, describe_run, experiment, figure_source, missing_commands, save_figures, show_figure)
from warm import WARM

import mixsupcon

QUICK = dict(epochs=1, image_size=8, batch_size=256, probe_epochs=2, device="cpu")


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return experiment("mixsupcon", dataset="digits", root=tmp_path_factory.mktemp("runs"), **QUICK)


def python(code, command=(sys.executable,)):
    return subprocess.run([*command, "-c", code], capture_output=True, text=True)


def test_importing_costs_nothing():
    "Neither time nor torch; and each public name is there."
    code = ("import sys, time; start = time.perf_counter(); import mixsupcon; spent = time.perf_counter() - start\n"
            "print(spent, *({'torch', 'numpy', 'pandas', 'matplotlib', 'mixsupcon.core'} & {*sys.modules}))")
    times = []
    for _ in range(3):
        done = python(code)
        spent, *loaded = done.stdout.split()
        assert not loaded, done.stderr
        times.append(float(spent))
    assert min(times) < .05
    assert {"configure", "experiment", "options", "supcon", "SupConLoss", "mix", "register"} <= {*mixsupcon.__all__}
    for name in mixsupcon.__all__:
        assert getattr(mixsupcon, name) is not None and name in dir(mixsupcon)
    with pytest.raises(AttributeError, match="no attribute 'supcom'"):
        mixsupcon.supcom


def test_help_explains_itself():
    "What experiment returns, what can be set, and where it is written."
    for part in ("numbers", "log", "figures", "encoder", "embed", "export", "options(method)", "outputs/runs"):
        assert part in experiment.__doc__, part
    assert "options" in configure.__doc__
    public = {name: value for name, value in vars(Result).items() if not name.startswith("_")}
    assert all(getattr(value, "__doc__", None) for value in public.values())


def test_numbers_and_log(result):
    numbers, log = result.numbers, result.log
    assert {"protocol", "metric", "selection", "value", "n"} <= {*numbers.columns}
    assert numbers.value[0] == result.accuracy == result.linear["curve"][-1] and numbers.value.between(-1, 1).all()
    assert list(log.epoch) == [1] and {"loss", "lr", "seconds", "passes"} <= {*log.columns}
    assert f"{result.accuracy:.4f}" in repr(result) and result.folder.name in repr(result)
    assert result._repr_html_().count("<tr") == len(numbers) + 1
    assert Result(str(result.folder)).numbers.equals(numbers)   # opened again by its path


def test_what_was_done_is_read(result):
    before = {path.name: path.stat().st_mtime_ns for path in result.folder.iterdir() if path.suffix != ".png"}
    again = experiment("mixsupcon", dataset="digits", root=result.folder.parent, **QUICK)
    assert again.folder == result.folder and again.numbers.equals(result.numbers)
    assert before.items() <= {path.name: path.stat().st_mtime_ns for path in result.folder.iterdir()}.items()


def test_the_encoder_takes_a_users_images(result):
    "Tensors, arrays and images of Pillow give the features that the linear probe learned from."
    from PIL import Image
    data = load_data(result.cfg)
    x = data.test_x[:5]
    features = result.embed(x)
    trained = evaluate.Trained(result.folder, data)
    assert torch.equal(features, trained.features(x)) and features.shape == (5, 64)
    array = x.permute(0, 2, 3, 1).numpy()
    pictures = [Image.fromarray(picture) for picture in array]
    for images in (array, pictures, [array[0], *pictures[1:]]):
        assert torch.equal(result.embed(images), features)
    assert not result.encoder.training and torch.equal(result.encoder(result.transform(x)).detach(), features)
    assert result.embed(Image.new("L", (50, 30))).shape == (1, 64)   # grey, and of another size
    for wrong in (x/255., np.zeros((4, 4), np.uint8), x[:, :1]):
        with pytest.raises(Refusal, match="given images must be uint8"):
            result.embed(wrong)


@pytest.mark.slow
def test_figures_are_drawn_when_asked_for(result, tmp_path):
    "Listing them costs nothing; each is drawn once; all can be saved."
    fresh = Result(result.folder)
    start = time.perf_counter()
    names = list(fresh.figures)
    assert time.perf_counter() - start < .2 and names == ["views", "curves", "confusion", "tsne"]
    assert "tsne" in fresh.figures and "tnse" not in fresh.figures and not fresh.figures.drawn
    assert fresh.figures["curves"] is fresh.figures["curves"] and len(fresh.figures["curves"].axes) == 3
    with pytest.raises(Refusal, match="did you mean 'tsne'"):
        fresh.figures["tnse"]
    paths = save_figures(fresh, tmp_path, "pdf")
    assert {path.stem for path in paths} == {*names} and all(path.read_bytes()[:4] == b"%PDF" for path in paths)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["views", "curves", "confusion", "tsne"])
def test_a_picture_is_drawn_again_only_if_its_source_changed(result, name):
    "The picture in the folder stays as it is, until what it was drawn from is another."
    shown = show_figure(result, name)
    path, source = result.folder/f"{name}.png", figure_source(result.folder, name)
    assert path.read_bytes() == shown.data and source.encode() in shown.data[:1000]
    drawn = path.stat().st_mtime_ns
    show_figure(Result(result.folder), name)
    assert path.stat().st_mtime_ns == drawn
    file = dict(views="views.safetensors", tsne="tsne.json").get(name, "linear.json")
    before = (result.folder/file).read_bytes()
    try:
        (result.folder/file).write_bytes(before + b" ")   # after JSON a blank, after tensors what is no tensor
        changed = figure_source(result.folder, name)
        assert changed != source
        if name == "views":
            (result.folder/file).write_bytes(before)
            path.write_bytes(shown.data.replace(source.encode(), changed.encode(), 1))
        show_figure(result, name)
        assert figure_source(result.folder, name).encode() in path.read_bytes()[:1000]
        assert path.stat().st_mtime_ns != drawn
    finally:
        (result.folder/file).write_bytes(before)


@pytest.mark.slow
def test_plain_python_says_each_thing_once(tmp_path):
    "A script's terminal has one line for its one epoch, and no warning."
    code = f"from mixsupcon import experiment; print(experiment('supcon', root={str(tmp_path)!r}, **{QUICK}))"
    done = python(code, WARM)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"epoch 1/1 ", done.stdout + done.stderr)) == 1 and "Warning" not in done.stderr
    assert re.fullmatch(r"supcon on digits: linear 0\.\d{4} \(supcon-digits-\S+\)\n", done.stdout)


def test_an_encoder_is_exported(result, tmp_path):
    out = result.export(tmp_path/"encoder")
    assert {"model.safetensors", "README.md", "config.json"} <= {path.name for path in out.iterdir()}


def test_whose_run_it_is(result):
    words = describe_run(result.folder)
    assert words.startswith("MixSupCon on digits: resnet8, 1 epoch, seed 0, trained ")
    assert re.search(r" \d{4}, \d\d:\d\d$", words)


@pytest.mark.slow
def test_a_missing_run_has_a_command_that_makes_it(tmp_path):
    "Its settings, given as the command says them, are the planned run's."
    import shlex

    from mixsupcon.report.studies import find_runs, plan
    planned = plan("small", ["comparison"])
    table = missing_commands(find_runs(planned, tmp_path)[0])
    assert len(table) == len({run.row for run in planned})
    for command, row in zip(table.command, table.row):
        words = shlex.split(command)
        assert words[:2] == ["papermill", "nbs/run_experiment.ipynb"] and words[2::3] == ["-p"]*(len(words[2:])//3)
        given = {name: as_papermill(value) for name, value in zip(words[3::3], words[4::3])}
        repeats = given.pop("repeats")
        cfgs = [configure(**given | dict(seed=seed)) for seed in range(repeats)]
        assert cfgs == [run.cfg for run in planned if run.row == row]
    assert command_of(dict(mixer="mixup cutmix", tau=.1)).endswith("-p mixer 'mixup cutmix' -p tau 0.1")


def as_papermill(word):
    "A value as papermill reads it."
    from papermill.cli import _resolve_type
    return _resolve_type(word)


@pytest.mark.slow
def test_an_untrained_network_has_a_result(tmp_path):
    "No epoch: an empty log, and figures nevertheless."
    result = experiment("simclr", root=tmp_path, **QUICK | dict(epochs=0))
    assert len(result.log) == 0 and {"epoch", "loss"} <= {*result.log.columns}
    assert result.figures["curves"].axes and runs.read_log(result.folder) == [] and train.load_net(result.folder)


@pytest.mark.slow
def test_images_without_labels_have_a_result(tmp_path):
    "No probe, no confusion matrix, no accuracy, and every other figure."
    from PIL import Image
    noise = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    (tmp_path/"images").mkdir()
    for i, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path/"images"/f"{i}.png")
    given = QUICK | dict(dataset="folder", data_dir=str(tmp_path/"images"), batch_size=16, arch="resnet8")
    result = experiment("simclr", root=tmp_path/"runs", **given)
    assert result.accuracy is result.linear is None and list(result.figures) == ["views", "curves", "tsne"]
    assert "alignment" in repr(result) and result.embed(noise).shape == (40, 64)
    assert "no labels" in show_figure(result, "confusion").axes[0].texts[0].get_text()
    assert show_figure(result, "tsne").data[:4] == b"\x89PNG" and not (result.folder/"confusion.png").exists()
