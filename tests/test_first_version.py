"What the first version (0.1.0) left behind is read, shown and reported."
import json
from pathlib import Path

import pytest
from mixsupcon.core.configure import configure, departures, read, recipes
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import Refusal, values
from mixsupcon.lab.experiment import Result
from mixsupcon.lab.runs import check_seal, read_config, read_log, run_folders
from mixsupcon.report.studies import folders_by_key, run_key
from mixsupcon.report.tables import probe_table, run_table

RUNS = sorted((Path(__file__).parent/"data"/"first_version_runs").iterdir())
RECIPES = json.loads((Path(__file__).parent/"data"/"first_version_recipes.json").read_text())


def name(path):
    return path.name.split("-")[0]


@pytest.mark.parametrize("folder", RUNS, ids=name)
def test_its_options_are_read(folder):
    "Each by its name of today, with the value that it had."
    then, now = json.loads((folder/"config.json").read_text())["config"], read_config(folder)
    renamed = dict(share_bn=("together", {"apart": "none"}), contrast_set=("pot", {}),
                   mixture_of=("mixture", {"none": "one view"}))
    for option, value in values(now).items():
        old, words = renamed.get(option, (option, {}))
        if old in then and option not in ("optimizer", "predictor_lr"):
            assert words.get(then[old], then[old]) == value, option
    assert now.method == then["method"] and now.preset == "digits50"


def test_they_are_complete_runs(first_version_runs):
    "As sealed as they were."
    folders = run_folders(first_version_runs)
    assert {folder.name for folder in folders} == {folder.name for folder in RUNS}
    for folder in folders:
        metrics = check_seal(folder)
        assert len(metrics["rows"]) >= 5 and len(read_log(folder)) == 2


def test_a_changed_number_is_noticed(first_version_runs):
    folder = first_version_runs/RUNS[0].name
    linear = json.loads((folder/"linear.json").read_text())
    linear["rows"][0]["value"] = .99
    (folder/"linear.json").write_text(json.dumps(linear))
    with pytest.raises(Refusal, match="linear.json in .* has been changed"):
        check_seal(folder)


def test_they_are_shown(first_version_runs):
    "The headline and the table of numbers."
    for folder in run_folders(first_version_runs):
        result = Result(folder)
        assert 0 < result.accuracy < 1 and len(result.numbers) == len(result.metrics["rows"])
        assert set(departures(result.cfg)) >= {"epochs", "image_size"}


@pytest.mark.parametrize("method, probe", [("mixco", "lin_supcontrast"), ("simclr", "lin_moco")])
def test_runs_whose_numbers_have_changed_are_refused(method, probe):
    "With the part that was corrected, and why."
    then = record("small", method)
    with pytest.raises(Refusal, match="of the first version of (MixCo|LinMoCo), corrected since: "):
        read(then | dict(probe=probe))


# ---- recipes

SAME = dict(small="digits", few="digits50", table1="mixsupcon", readme="supcontrast_readme", ermolov="wmse_authors",
            ermolov_tiny="wmse_authors_tiny_imagenet", ermolov_stl="wmse_authors_stl10",
            swav_released="swav_bottleneck")
CORRECTED = dict(   # options in which a recipe differs on purpose, with the reason
    cosine_clock="each paper's own way of counting epochs", cosine_end="of that curve",
    normalise="as in each paper's code",
    warmup_epochs="W-MSE's authors warm up for 500 steps", warmup_steps="W-MSE's authors warm up for 500 steps",
    warmup_lr="as in each paper's code", warmup_ends="as in each paper's code",
    zero_init="SimSiam's encoder", queue_start="SwAV's queue starts after 15 epochs",
    gray_first="MoCo v1 on ImageNet", jitter_prob="MoCo v1 on ImageNet", hue_share="MoCo v1 on ImageNet",
    mixed_views="MixCo's authors mix both views", share_bn="MixCo's views on SimCLR pass apart", mix_tau="MixCo's",
    mixer_per="GenSCL draws a mixer for each view", probe_warmup="GenSCL's probe", probe="GenSCL's probe")

OF_ONE = dict(siam_cifar=dict(lr="MixSiam's .03 is read as the rate for a batch of 256, as in SimSiam's code"))


def record(preset, method):
    "The complete record of the first version."
    table = RECIPES["presets"][preset]
    return RECIPES["base"] | table["every"] | table[method] | dict(method=method, preset=preset)


@pytest.mark.parametrize("preset", RECIPES["presets"])
def test_recipes_are_what_they_were(preset, monkeypatch):
    "For every method of then, but for what has been corrected after comparison with the authors' code."
    monkeypatch.setattr("mixsupcon.core.configure.CORRECTED", {})   # to read those too whose numbers have changed
    assert SAME.get(preset, preset) in recipes()
    unlike = {}
    renamed = {"swav_codes_unmix": "swav_released_unmix"}
    for method, old in [(method, renamed.get(method, method)) for method in METHODS]:
        if old not in RECIPES["presets"][preset]:   # a later method
            continue
        then = read(record(preset, old))
        try:
            now = configure(method, preset=SAME.get(preset, preset), dataset=then.dataset)
        except Refusal as error:
            unlike.setdefault(str(error), []).append(method)
            continue
        a, b = values(then), values(now)
        skipped = CORRECTED.keys() | OF_ONE.get(preset, {}).keys()
        changed = {k: (a[k], b[k]) for k in (a.keys() & b.keys()) - skipped if a[k] != b[k]}
        for both in changed.items():
            unlike.setdefault(both, []).append(method)
    assert not unlike, "\n".join(f"{both}: {', '.join(methods)}" for both, methods in unlike.items())
    assert len({*METHODS} & {*RECIPES["presets"][preset]}) >= 34


# ---- the report

def test_they_are_in_the_tables(first_version_runs):
    "Every number of every run, with its method, preset and what was changed."
    folders = run_folders(first_version_runs)
    table = run_table(folders)
    assert len(table) == sum(len(Result(folder).metrics["rows"]) for folder in folders)
    assert {*table.method} == {name(folder) for folder in RUNS} and {*table.preset} == {"digits50"}


def test_their_probes_are_in_the_tables(first_version_runs):
    for folder in run_folders(first_version_runs):
        assert probe_table(folder).protocol.tolist() == ["lin_supcontrast"]


def test_they_stand_beside_new_runs_in_a_study(first_version_runs):
    "As the run that the study plans, if it has the same options."
    folders, odd = folders_by_key(first_version_runs)
    assert not odd and sum(map(len, folders.values())) == len(RUNS)
    for folder in run_folders(first_version_runs):
        assert folder in folders[run_key(read_config(folder))]
