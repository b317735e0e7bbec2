"A paper of one's own: a goal, a strategy and a row of METHODS, here; no other run changes, and nothing else is edited."
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from mixsupcon.core import methods
from mixsupcon.core.configure import PAPERS, Paper, Recipe, Study, configure, options, papers, recipes
from mixsupcon.core.goals import Goal, unit
from mixsupcon.core.methods import METHODS, of
from mixsupcon.core.options import Positive, Share, identity, refused
from mixsupcon.core.strategies import Mixing
from mixsupcon.lab.experiment import experiment, run_one
from mixsupcon.lab.runs import read_config, run_folders
from small import build, loss, small


@dataclass(frozen=True)
class Nearest(Goal):
    "The squared distance to the key, less the mean over the batch's keys."
    weight: Share = .5                        # of the mean
    share_bn: Literal["none", "all"] = "all"  # where the views share batch norm

    def loss(self, step, q, k):
        distance = 2 - 2*q @ k.T
        return distance - self.weight*distance.mean(1, keepdim=True)


@dataclass(frozen=True)
class Halfway(Mixing):
    "The base loss, and mixtures that should lie on the line between their sources' keys."
    key = "halfway"
    pull: Positive = .5   # of the mixtures' loss

    def loss(self, goal, step):
        a, b = step.views
        (mixture,), w = self.mixture(step, a)
        middle = unit((w @ goal.pair(a, b)[1].float()).detach())
        return goal.base_loss(step) + self.pull*(unit(mixture.z) - middle).square().sum(1).mean()


SETTINGS = dict(arch="resnet8", epochs=1, batch_size=25, train_images=50, image_size=8, probe_epochs=2)


def studies(scale):
    return dict(toy=Study("A toy", dict(nearest=dict(method="nearest"), mixed=dict(method="nearest_halfway")),
                          "nearest", dict(digits=SETTINGS)))


@pytest.fixture
def sixth_paper(monkeypatch):
    "The paper is there for one test."
    papers()
    monkeypatch.setattr(methods, "METHODS", METHODS)
    before = dict(METHODS)
    METHODS["nearest"] = of(Nearest)
    METHODS["nearest_halfway"] = of(Nearest, Halfway, "nearest")
    toy = Recipe("a toy", "ours", SETTINGS | dict(lr=.05), dict(halfway=dict(alpha=.7)))
    PAPERS["toy"] = Paper("A toy", "nobody", dict(toy=toy), studies)
    yield
    del PAPERS["toy"]
    for name in METHODS.keys() - before.keys():
        del METHODS[name]


def identities():
    return {method: identity(configure(method), "data") for method in METHODS}


def test_no_other_run_changes(request):
    before = identities()
    request.getfixturevalue("sixth_paper")
    after = identities()
    assert {method: after[method] for method in before} == before and len(after) == len(before) + 2


def test_its_options_are_its_own(sixth_paper):
    "They are listed, checked, and refused for others with its name."
    assert {"pull", "weight", "mixer"} <= set(options("nearest_halfway").index)
    assert "it is an option of Halfway" in refused(configure, "simclr", pull=.2)
    assert "it is an option of Nearest" in refused(configure, "moco", weight=.2)
    assert "nearest has no pull" in refused(configure, "nearest", pull=.2)


def test_its_recipe_is_a_preset(sixth_paper):
    assert "toy" in recipes()
    cfg = configure("nearest_halfway", preset="toy")
    assert (cfg.alpha, cfg.lr, cfg.epochs) == (.7, .05, 1) and configure("nearest", preset="toy").lr == .05


def test_it_learns(sixth_paper):
    "Its loss is finite and its gradient reaches every weight."
    for method in ("nearest", "nearest_halfway"):
        cfg = small(method)
        net = build(cfg)
        loss(cfg, net).loss.backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters()), method


def test_a_changed_number_of_its_makes_another_run(sixth_paper):
    "Code that is no part of the package is part of the identity."
    before = identity(configure("nearest"), "data")

    @dataclass(frozen=True)
    class Nearest(Goal):
        "Another loss under the same name."
        weight: Share = .5
        share_bn: Literal["none", "all"] = "all"

        def loss(self, step, q, k):
            return 2 - 2*q @ k.T
    METHODS["nearest"] = of(Nearest)
    assert identity(configure("nearest"), "data") != before


@pytest.mark.slow
def test_it_is_trained_and_reported(sixth_paper, tmp_path):
    torch.set_num_threads(1)
    result = experiment("nearest_halfway", tmp_path, preset="toy")
    assert 0 < result.accuracy <= 1 and {"lin_supcontrast", "knn5"} <= {*result.numbers.protocol}
    assert run_folders(tmp_path) == [result.folder] and read_config(result.folder) == result.cfg
    assert run_one(result.cfg, tmp_path) == result.folder   # which is loaded, not trained again
