"""Losses, gradients and states of three steps are those of the first version (0.1.0), to 1e-9 in float64.

The numbers were stored by tests/programs/store_equality.py with the first version's code. What has been corrected
since, after comparison with the authors' code, is listed in CORRECTED with the reason, and must differ.
"""
import json
from pathlib import Path

import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS, loss_of
from mixsupcon.core.models import update_state
from mixsupcon.core.options import stream, values
from small import build
from store_equality import CLASSES, SIDE, fill, trained

STORED = json.loads((Path(__file__).parent/"data"/"equality.json").read_text())
RENAMED = dict(swav_released_unmix="swav_codes_unmix")
AS_BEFORE = dict(   # whose defaults are others now: their authors'
    mixco=dict(share_bn="all", mixed_views="one", mix_tau=.05), genscl=dict(mixer_per="step"))

CORRECTED = (   # reason, and whether it is about a method with these options
    ("MixCo on MoCo embeds clean and mixed images in one batch-norm batch, as its authors do",
     lambda method, given, seed: method == "moco_mixco" and (given.get("mixer") != "manifoldmix" or seed == 0)),
    ("SwAV has a queue for each view", lambda method, given, seed: "swav" in method and given.get("queue", 0) > 0),
    ("SwAV's crops pass the head in one batch", lambda method, given, seed: given.get("small_crops", 0) > 0))
# ManifoldMix mixes inside the network, where MixCo has no common batch; of its seeds only 0 mixes images in a step


def reason(case):
    "Why a case differs from the first version on purpose; empty if it does not."
    mine = case["method"], case["settings"], case["seed"]
    return next((why for why, concerns in CORRECTED if concerns(*mine)), "")


def name(case):
    given = {k: v for k, v in case["settings"].items() if STORED["methods"][case["method"]].get(k) != v}
    more = "".join(f" {k}={v}" for k, v in given.items() if k not in ("batch_size", "lr"))
    more += f" seed={case['seed']}"*bool(case["seed"]) + f" n={case['n']}"*(case["n"] != 12)
    return case["method"] + more


def config(case):
    "The case in today's options."
    method = RENAMED.get(case["method"], case["method"])
    return configure(method, **AS_BEFORE.get(method, {}) | case["settings"])


def computed(case):
    "The numbers of the case by the package as it is."
    cfg = config(case)
    net, steps = fill(build(cfg, SIDE), stream), []

    def loss(x, y, gen):
        steps.append(loss_of(cfg, net, x, y, CLASSES, gen))
        return steps[-1].loss

    keys = lambda: list(steps[-1].new_keys)   # noqa: E731
    update = lambda: update_state(net, .9, steps[-1].new_keys)   # noqa: E731
    views = cfg.goal.views, getattr(cfg, "small_crops", 0)
    return trained(net, loss, keys, update, stream, case["seed"], case["n"], *views)


def difference(a, b):
    "The largest difference of two nested numbers, relative where they are above one; infinite for another shape."
    if b is None:
        return float("inf")
    if isinstance(a, dict):
        return max((difference(a[k], b[k]) for k in a), default=0) if a.keys() == b.keys() else float("inf")
    if isinstance(a, list):
        return max(map(difference, a, b), default=0) if len(a) == len(b) else float("inf")
    return abs(a - b)/max(1, abs(a))


def check(case):
    torch.set_num_threads(1)
    now = computed(case)
    apart = {what: difference(stored, now.get(what)) for what, stored in case["numbers"].items()}
    assert max(apart.values()) < 1e-9, {what: f"{by:.1e}" for what, by in apart.items() if by >= 1e-9}


FIRST = STORED["cases"][:len(STORED["methods"])]           # each method as it is
SWITCHED = [case for case in STORED["cases"][len(FIRST):] if not reason(case)]
DIFFERENT = [case for case in STORED["cases"] if reason(case)]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in FIRST if not reason(case)], ids=name)
def test_every_method(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SWITCHED, ids=name)
def test_every_switch(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERENT, ids=name)
def test_corrected_numbers_differ(case):
    "So the list of corrections names nothing that has not changed."
    assert difference(case["numbers"]["loss"], computed(case)["loss"]) > 1e-9 or \
        difference(case["numbers"]["gradients"], computed(case)["gradients"]) > 1e-9, reason(case)


def test_every_method_of_the_first_version_is_compared():
    "All methods but those that were added since."
    added = {"automix", "amix", "moco_mix", "amix_i", "amix_c"}
    assert {RENAMED.get(method, method) for method in STORED["methods"]} == {*METHODS} - added and added < {*METHODS}
    assert len(STORED["cases"]) > 290 and len(DIFFERENT) < 20


@pytest.mark.parametrize("case", FIRST, ids=name)
def test_options_have_the_same_values(case):
    "What acts in a loss is set as it was, for every option that the method owns."
    then = STORED["methods"][case["method"]] | case["values"]
    now = values(config(case)) | {k: then[k] for k in AS_BEFORE.get(case["method"], {}) if k in then}
    unlike = {k: (then[k], now[k]) for k in then.keys() & now.keys() if then[k] != now[k]}
    assert not unlike
