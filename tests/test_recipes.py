"Every recipe takes a step, every method learns, and what must not be trained is refused."
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from mixsupcon.augment import normalised
from mixsupcon.config import DEFAULTS, PRESETS, Refusal, amended, configure, families
from mixsupcon.data import assembled, fingerprint, load_data
from mixsupcon.evaluate import accuracy, embed, knn
from mixsupcon.methods import METHODS, checked_names
from mixsupcon.runs import checkpoints, run_folder
from mixsupcon.train import Learner, move, pretrain, settled, step_loss, train_epoch

CPU = torch.device("cpu")


def images(n, side):
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 4
    return assembled(x, y, x, y, list("abcd"))


def mixed(*names, way):
    return [name for base in names for name in (base, f"{base}_{way}")]


CLASSES, SIAM, MOCO = ("mixsupcon", "supcon", "simclr", "ce"), ("simsiam", "mixsiam"), mixed("moco", "moco_sym", way="unmix")
IMIX = mixed("npair", "sup_npair", "mocon", "byol", "simclr", way="imix") + ["moco", "moco_imix", "supclr_imix"]
ERMOLOV = mixed("simclr", "byol", "wmse2", "wmse4", way="unmix")
MEANT = dict(   # the methods that a recipe is for
    small=METHODS, few=METHODS, table1=CLASSES, readme=(*CLASSES, "genscl"), imix=IMIX, imix_cifar10=IMIX, imix_cifar100=IMIX, imix_unaugmented=IMIX[4:6],
    imix_imagenet=IMIX[4:6], ermolov=ERMOLOV, ermolov_tiny=ERMOLOV, ermolov_stl=ERMOLOV, moco_cifar=MOCO, swav_cifar=("swav", "swav_unmix"), swav_released=("swav", "swav_released_unmix"), moco_imagenet=MOCO[:2],
    siam_cifar=SIAM, siam_imagenet=SIAM)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_recipe_takes_a_step(preset):
    "Each of its methods on 16 images: a finite loss that reaches every weight."
    side = 64 if preset in ("ermolov_tiny", "ermolov_stl") or "imagenet" in preset else 16 if preset in ("small", "few") else 32
    data, first = images(16, side), side == 32
    for method in MEANT[preset]:
        small = dict(batch_size=16, queue=32, white_size=16, out=8, hidden=16, predictor=8, warmup_epochs=0, epochs=1, image_size=side, device="cpu", precision="float32")
        cfg = configure(method=method, preset=preset, dataset="folder", **small | ({} if first else dict(arch="resnet8")))   # one with the recipe's own
        cfg = amended(cfg, bn_splits=min(cfg.bn_splits, 4))
        checked_names(cfg)
        learner, first = Learner(cfg, data, CPU), False
        learner.net.train()
        loss = step_loss(cfg, learner, data.train_x, data.train_y, data, 0)
        loss.backward()
        idle = [k for k, p in learner.net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all() or not p.grad.any())]
        assert loss.isfinite() and not idle, (method, idle)
        move(cfg, learner, cfg.lr, 0, 1)
        assert all(v.isfinite().all() for v in learner.tensors().values()), method


def test_every_row_of_the_presets_is_somebodys():
    "A row that no method reads would be a misspelling."
    known = {row for method in METHODS for row in families(method)}
    for name, table in (PRESETS | dict(defaults=DEFAULTS)).items():
        assert set(table) - {"source", "fidelity", "also", "brief"} <= known, name


def neighbours(cfg, learner, data):
    train, test = (embed(learner.net.encoder, x, lambda batch, rows: normalised(batch, data.mean, data.std)) for x in (data.train_x, data.test_x))
    return accuracy("knn5", knn(train, data.train_y, test, len(data.classes), 5), data.test_y)["value"]


def learned(method):
    "Neighbours' accuracy before and after training on fifty digits, means of two seeds."
    torch.set_num_threads(1)
    before = after = 0.
    for seed in (0, 1):
        cfg = settled(configure(method=method, preset="few", seed=seed, device="cpu"))
        data = load_data(cfg)
        learner = Learner(cfg, data, CPU)
        before += neighbours(cfg, learner, data)/2
        for epoch in range(1, cfg.epochs + 1):
            train_epoch(cfg, learner, data.train_x, data.train_y, data, epoch)
        after += neighbours(cfg, learner, data)/2
    return method, before, after


def test_every_method_learns(capsys):
    "On fifty digits, in a few seconds each: neighbours well above the untrained encoder's."
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        seen = list(pool.map(learned, METHODS))
    with capsys.disabled():   # whether it passes or not
        print("\nknn5 on 360 digits, of fifty labelled ones\n" + "\n".join(f"{method:20} untrained {before:.3f}, trained {after:.3f}" for method, before, after in seen))
    assert all(after > before + .05 for _, before, after in seen), [row for row in seen if row[2] <= row[1] + .05]


def test_a_collapse_stops_the_run(tmp_path):
    "SimSiam without batch norm in its head and with too large a rate ends in one output for all; it is said, and the last checkpoint stays."
    wild = dict(head="mlp", hidden=0, lr=1., weight_decay=.05, epochs=40, batch_size=16, save_seconds=0., device="cpu")
    data, cfg = images(64, 8), settled(configure(method="simsiam", **wild))
    with pytest.raises(Refusal, match="have collapsed to one in epoch .* batch norm"):
        pretrain(cfg, data, tmp_path)
    folder = run_folder(cfg, fingerprint(data), tmp_path)
    assert checkpoints(folder) and not (folder/"training.json").exists()


def test_sizes_that_do_not_fit_are_refused_before_training(tmp_path):
    data = images(20, 16)
    for given, said in [(dict(method="swav", small_crops=2, small_size=16), "not smaller than the images' 16"),
                        (dict(method="wmse2", batch_size=64), "20 images do not fill a batch of 64")]:
        with pytest.raises(Refusal, match=said):
            pretrain(configure(**given), data, tmp_path)
