"A network's own classifiers: judged without a trace, after the last epochs, and shown by the rule that was named."
import json
import random
import tempfile
from contextlib import suppress
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from mixsupcon.core.configure import Paper, Study, configure
from mixsupcon.core.options import refused
from mixsupcon.core.views import normalise
from mixsupcon.lab import evaluate, runs, train
from mixsupcon.lab.data import load_data
from mixsupcon.lab.evaluate import (
    CLASSIFIERS, SELECTIONS, Trained, classifier_accuracy, classifier_of, classifier_rows, judges_classifier)
from mixsupcon.lab.experiment import judging_code, run_one
from mixsupcon.report.studies import plan, write_example_run
from mixsupcon.report.tables import COLUMNS, NUMBERS, numbers_of, results

TINY = dict(preset="digits", image_size=8, train_images=60, batch_size=30, probe_epochs=1, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(configure("ce", **TINY))


def four_headed(digits, names=tuple(CLASSIFIERS)):
    "A network with the heads of these classifiers, all of different weights, and batch norm that has seen images."
    net = train.Learner(configure("ce", **TINY), digits, CPU).net
    slow = train.Learner(configure("ce", **TINY | dict(seed=1)), digits, CPU).net
    net.train()
    slow.train()
    for own in (net, slow):
        own(normalise(digits.train_x, digits.mean, digits.std))
    torch.manual_seed(0)
    heads = dict(classifier_mix="mix_head", classifier_slow_mix="slow_mix_head")
    if "classifier_slow" in names:
        net.momentum_encoder = torch.nn.ModuleDict(dict(encoder=slow.encoder, head=slow.head))
    for name in heads.keys() & {*names}:
        setattr(net, heads[name], torch.nn.Sequential(torch.nn.Dropout(.9), torch.nn.Linear(net.encoder.width, 10)))
    return net


def by_hand(net, encoder, head, data):
    "The share of test images that are classified rightly, one image after another."
    right = 0
    for x, y in zip(data.test_x, data.test_y):
        pixels = x.double()/255
        seen = torch.stack([(pixels[c] - data.mean[c])/data.std[c] for c in range(3)]).float()
        logits = head(encoder(seen[None]))[0]
        right += max(range(10), key=lambda k: logits[k].item()) == y.item()
    return right/len(data.test_y)


@pytest.mark.slow
def test_each_classifier_is_its_encoder_and_its_head(digits):
    some = digits._replace(test_x=digits.test_x[:90], test_y=digits.test_y[:90])
    net = four_headed(digits)
    judged = classifier_accuracy(net, some, CPU)
    net.eval()
    fast, slow = net.encoder, net.momentum_encoder["encoder"]
    with torch.no_grad():
        expected = dict(
            classifier=by_hand(net, fast, net.head, some), classifier_mix=by_hand(net, fast, net.mix_head, some),
            classifier_slow=by_hand(net, slow, net.momentum_encoder["head"], some),
            classifier_slow_mix=by_hand(net, slow, net.slow_mix_head, some))
    assert judged == expected and [*judged] == [*CLASSIFIERS]
    assert len({*judged.values()}) > 1   # the heads differ, so a wrong pair would show


@pytest.mark.parametrize("names", [["classifier"], ["classifier", "classifier_mix"], ["classifier", "classifier_slow"],
                                   ["classifier", "classifier_mix", "classifier_slow"]], ids=len)
def test_a_network_is_judged_by_the_classifiers_that_it_has(digits, names):
    assert [*classifier_accuracy(four_headed(digits, names), digits, CPU)] == names


@pytest.mark.parametrize("method, n", dict(ce=1, automix=4, amix=4).items())
def test_methods_have_the_classifiers_that_they_train(digits, method, n):
    net = train.Learner(configure(method, **TINY), digits, CPU).net
    assert [*classifier_accuracy(net, digits, CPU)] == [*CLASSIFIERS][:n]


def states():
    "The states of all random generators that code may draw from by accident."
    return torch.random.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


@pytest.mark.parametrize("training", [True, False])
def test_judging_leaves_no_trace(digits, training):
    "Weights, statistics, gradients, modes of the parts, counted images and random generators are as they were."
    net = four_headed(digits)
    net.train(training)
    net.momentum_encoder.train(not training)   # parts may be in different modes
    net.head.weight.grad = torch.ones_like(net.head.weight)
    modes = [part.training for part in net.modules()]
    weights, passes, drawn = {k: v.clone() for k, v in net.state_dict().items()}, net.passes, states()
    first, second = classifier_accuracy(net, digits, CPU), classifier_accuracy(net, digits, CPU)
    assert first == second and [part.training for part in net.modules()] == modes
    assert net.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert net.passes == passes and states() == drawn and (net.head.weight.grad == 1).all()
    assert [p.grad is None for p in net.parameters()].count(False) == 1


@pytest.mark.slow
def test_modes_come_back_when_judging_is_refused(digits):
    net = four_headed(digits)
    net.train()
    net.encoder.eval()
    modes = [part.training for part in net.modules()]
    with torch.no_grad():
        next(net.encoder.parameters()).fill_(float("nan"))
    assert "the network has diverged" in refused(classifier_accuracy, net, digits, CPU)
    assert [part.training for part in net.modules()] == modes


def trained_net(digits, root, **given):
    folder = train.pretrain(configure("ce", **TINY | given), digits, Path(root))
    return folder, train.load_net(folder).state_dict(), runs.read_log(folder)


@pytest.mark.slow
@pytest.mark.parametrize("last_epochs, judged", [(1, [4]), (3, [2, 3, 4]), (99, [1, 2, 3, 4])])
def test_judging_changes_no_bit_of_training(digits, tmp_path, last_epochs, judged):
    _, plain, rows = trained_net(digits, tmp_path, epochs=4)
    _, weights, watched = trained_net(digits, tmp_path, epochs=4, classifier_epochs=last_epochs)
    assert all(torch.equal(v, weights[k]) for k, v in plain.items())
    assert [row["loss"] for row in rows] == [row["loss"] for row in watched]
    assert [row["epoch"] for row in watched if "accuracy" in row] == judged
    assert not any("accuracy" in row for row in rows)


@pytest.mark.slow
def test_an_interrupted_training_has_the_same_accuracies(digits, tmp_path, monkeypatch):
    given = dict(epochs=4, classifier_epochs=3, save_seconds=0.)
    straight, _, rows = trained_net(digits, tmp_path/"straight", **given)
    write = train.log

    def interrupted(folder, row):
        if row["epoch"] == 3:
            raise KeyboardInterrupt
        write(folder, row)

    monkeypatch.setattr(train, "log", interrupted)
    with suppress(KeyboardInterrupt):
        trained_net(digits, tmp_path/"again", **given)
    monkeypatch.setattr(train, "log", write)
    again, _, later = trained_net(digits, tmp_path/"again", **given)
    assert [row.get("accuracy") for row in rows] == [row.get("accuracy") for row in later]
    own, theirs = (classifier_of(Trained(folder, digits)) for folder in (straight, again))
    assert own == theirs and own["epochs"] == [2, 3, 4]


@pytest.mark.slow
def test_the_last_accuracy_is_that_of_the_saved_weights(digits, tmp_path):
    folder, *_ = trained_net(digits, tmp_path, epochs=3, classifier_epochs=2)
    made = classifier_of(Trained(folder, digits))
    again = classifier_accuracy(train.load_net(folder), digits, CPU)
    assert again == {name: curve[-1] for name, curve in made["curves"].items()}
    head = evaluate.linear_of(Trained(folder, digits))["rows"][-1]
    assert head["protocol"] == "own_head" and head["value"] == again["classifier"]


def middle(values):
    "The median: half of the values are at most as large, half at least."
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1)//2] + ordered[len(ordered)//2])/2


@pytest.mark.parametrize("n", [1, 2, 3, 9, 10, 11, 40])
def test_rules_of_selection(n):
    for seed in range(20):
        values = [random.Random(f"{n} {seed} {i}").random() for i in range(n)]
        made = {row["selection"]: row["value"] for row in classifier_rows(dict(classifier=values), 7)}
        assert made == dict(last=values[-1], best_test=max(values), median_last10=pytest.approx(middle(values[-10:])))
        assert min(values[-10:]) <= made["median_last10"] <= made["best_test"]
        earlier = [.999, *values[-10:]]   # an epoch before the last ten counts for the best alone
        if n >= 10:
            assert SELECTIONS["median_last10"](earlier) == made["median_last10"] < SELECTIONS["best_test"](earlier)


def test_every_classifier_has_a_row_for_each_rule():
    rows = classifier_rows(dict(classifier=[.5, .7], classifier_slow_mix=[.1, .3]), 9)
    assert [(row["protocol"], row["selection"]) for row in rows] == [
        (name, rule) for name in ("classifier", "classifier_slow_mix") for rule in SELECTIONS]
    assert {(row["metric"], row["n"]) for row in rows} == {("accuracy", 9)}
    assert rows[5]["value"] == pytest.approx(.2) and rows[4]["value"] == .3


def test_which_runs_are_judged():
    assert judges_classifier(configure("ce", classifier_epochs=10))
    for given in (dict(), dict(classifier_epochs=10, epochs=0)):
        assert not judges_classifier(configure("ce", **given))
    assert not judges_classifier(configure("simclr"))
    assert "classifier_epochs" in refused(configure, "simclr", classifier_epochs=10)


@pytest.fixture(scope="module")
def complete():
    "A complete run that judges its classifier, one that does not, and where they lie."
    with tempfile.TemporaryDirectory() as tmp:
        given = TINY | dict(epochs=3)
        yield [run_one(configure("ce", **given | more), Path(tmp)) for more in (dict(classifier_epochs=2), {})]


@pytest.mark.slow
def test_the_numbers_of_a_run_are_sealed_with_the_others(complete, digits):
    judged, plain = (runs.check_seal(folder) for folder in complete)
    kinds = {(row["protocol"], row["selection"]) for row in judged["rows"]}
    assert {("classifier", rule) for rule in SELECTIONS} <= kinds and "classifier.json" in judged["seals"]
    assert not any(row["protocol"] == "classifier" for row in plain["rows"])
    assert not (complete[1]/"classifier.json").exists() and "classifier.json" not in plain["seals"]
    assert run_one(configure("ce", **TINY, epochs=3), complete[1].parent) == complete[1]   # still complete


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier.json", "log.jsonl"])
def test_a_changed_accuracy_is_noticed(complete, name):
    path = complete[0]/name
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"classifier": 0.', b'"classifier": 0.9') if name == "log.jsonl" else
                     whole.replace(b'"value": 0.', b'"value": 0.9', 1))
    assert path.read_bytes() != whole and name in refused(runs.check_seal, complete[0])
    path.write_bytes(whole)
    runs.check_seal(complete[0])


@pytest.mark.slow
def test_a_log_without_accuracies_says_what_to_do(complete, digits):
    assert "train with -p classifier_epochs 10" in refused(classifier_of, Trained(complete[1], digits))


def test_fingerprints_of_the_judging_code_are_without_it():
    "So that no run of before is of other code."
    assert not [name for name in judging_code() if "classifier" in name]


def studies_of(scale):
    rows = {name: dict(method="ce", classifier_epochs=10, mixer=name) for name in ("cutmix", "mixup")}
    data = {"digits": dict(preset="digits50")}
    return dict(own=Study("Own classifiers", rows, "cutmix", data, seeds=3, measure="classifier median",
                          shows=("classifier", "classifier best", "linear")))


def test_a_study_shows_the_median_of_the_last_ten_epochs(tmp_path):
    papers = dict(own=Paper("Own classifiers", "", {}, studies_of, "", ()))
    values = {run.cfg: .7 + .01*run.seed + .1*(run.row == "mixup") for run in plan("small", papers=papers)}
    for cfg, value in values.items():
        folder = write_example_run(tmp_path, cfg, value)
        rules = {row["selection"]: row["value"] for row in json.loads((folder/"classifier.json").read_text())["rows"]}
        own = numbers_of(folder)
        assert [own[f"classifier{name}"] for name in ("", " best", " median")] == [*rules.values()]
    made = results("small", root=tmp_path, papers=papers)
    _, words, _ = made.words["own"]
    titles = [COLUMNS[name][0] for name in ("classifier median", "classifier", "classifier best", "linear")]
    assert [title for title in words if title in titles] == titles
    for row, part in words.groupby("row"):
        medians = [100*(value - .01) for cfg, value in values.items() if cfg.mixer == row]
        assert part[titles[0]].item() == f"{mean(medians):.1f} ± {stdev(medians):.1f}"
    table = made.tables["own"].set_index("row")
    assert table.difference["mixup"] == pytest.approx(10) and made.best["own"][titles[0]].tolist() == [False, True]


def test_every_classifier_and_rule_has_a_column():
    shown = {kind[0]: name for name, kind in NUMBERS.items() if kind[2] == "median_last10"}
    assert shown.keys() == CLASSIFIERS.keys() and {*shown.values()} <= {*COLUMNS}
    assert {kind[2] for kind in NUMBERS.values() if kind[0] == "classifier"} == {*SELECTIONS}
    titles = [title for title, *_ in COLUMNS.values()]
    assert len({*titles}) == len(titles)   # tables are put together by title
