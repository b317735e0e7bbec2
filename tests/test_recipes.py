"Every recipe takes a step, every method learns, and what must not be trained is refused."
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from conftest import random_images
from mixsupcon.core.configure import SCALES, configure, recipes
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import Refusal, idle
from mixsupcon.core.views import normalise
from mixsupcon.lab.data import fingerprint, load_data
from mixsupcon.lab.evaluate import accuracy, embed, knn
from mixsupcon.lab.runs import checkpoints, run_folder
from mixsupcon.lab.train import (
    Learner, clusters_of, compute_loss, fill_clusters, pretrain, resolve_device, train_epoch, update_weights)
from mixsupcon.report.plots import FIGURES
from mixsupcon.report.studies import chapters
from mixsupcon.report.tables import COLUMNS
from small import owned

CPU = torch.device("cpu")
CLASSES, SIAM = ("mixsupcon", "supcon", "simclr", "ce"), ("simsiam", "mixsiam")
MOCO = ("moco", "moco_unmix", "moco_sym", "moco_sym_unmix")
IMIX = ("npair", "npair_imix", "sup_npair", "sup_npair_imix", "mocon", "mocon_imix", "byol", "byol_imix", "simclr",
        "simclr_imix", "moco", "moco_imix", "supclr_imix")
AMIX, AMIX_SSL = ("amix", "automix", "ce"), ("amix_c", "amix_i", "moco_mix", "moco", "moco_imix", "moco_unmix")
PHOTOS = (*CLASSES, *SIAM, *AMIX[:2], *AMIX_SSL[:4], "genscl", "supclr_imix", "simclr_unmix", "moco_unmix",
          "byol_unmix", "npair", "npair_imix", "moco_imix", "byol", "byol_imix")
WMSE = ("simclr", "simclr_unmix", "byol", "byol_unmix", "wmse2", "wmse2_unmix", "wmse4", "wmse4_unmix")
MEANT = dict(   # the methods that a recipe is for
    digits=METHODS, digits50=METHODS, own_images=METHODS, mixsupcon=CLASSES,
    supcontrast_readme=(*CLASSES, "genscl"), imix=IMIX, imix_cifar10=IMIX, imix_cifar100=IMIX,
    imix_unaugmented=("mocon", "mocon_imix"),
    imix_imagenet=("moco", "moco_imix", "mocon", "mocon_imix"), moco_cifar=MOCO,
    wmse_authors=WMSE, wmse_authors_tiny_imagenet=WMSE, wmse_authors_stl10=WMSE,
    swav_cifar=("swav", "swav_unmix"), swav_bottleneck=("swav", "swav_codes_unmix"), moco_imagenet=MOCO[:2],
    siam_cifar=SIAM, siam_imagenet=SIAM,
    amix_cifar100=AMIX, amix_tiny=AMIX, amix_imagenet=AMIX, amix_cub200=AMIX, amix_aircraft=AMIX,
    amix_cub200_full=AMIX, amix_aircraft_full=AMIX,
    amix_stl10=AMIX_SSL, amix_tiny_ssl=AMIX_SSL, amix_imagenet_ssl=AMIX_SSL,
    photos300=PHOTOS, photos2500=PHOTOS, photos50000=PHOTOS)
SIX = ("npair", "npair_imix", "mocon", "mocon_imix", "byol", "byol_imix")
PIXELS = ("automix", "amix", "amix_i", "amix_c")   # learn where to cut
BEYOND = dict(   # of rows and sounds, which take their steps in test_beyond_images
    imix_covtype=SIX, imix_covtype_released=SIX, imix_higgs=SIX, imix_higgs1m=SIX, imix_higgs_released=SIX,
    imix_speech=SIX, imix_speech_released=SIX,
    **dict.fromkeys(("own_table", "small_rows", "small_tones"), [name for name in METHODS if name not in PIXELS]))
SIDES = dict(digits=16, digits50=16, wmse_authors_tiny_imagenet=64, wmse_authors_stl10=64, imix_imagenet=96,
             moco_imagenet=96, siam_imagenet=96, amix_imagenet=96, amix_cub200=96, amix_aircraft=96, amix_stl10=96,
             amix_cub200_full=96, amix_aircraft_full=96, amix_imagenet_ssl=96)
SMALL = dict(batch_size=8, queue=16, white_size=8, out=4, hidden=16, predictor=8, warmup_epochs=0, warmup_steps=0,
             epochs=2, device="cpu", precision="float32", compile="off", dataset="folder", pretrained="", clusters=4)


def small_recipe(preset, method, **more):
    "A method of a recipe with sizes that fit eight images."
    cfg = configure(method, preset=preset)
    sizes = {k: v for k, v in SMALL.items() if k in owned(method) and k not in idle(cfg)}
    if "queue" in sizes and "prototypes" in sizes | owned(method):
        del sizes["queue"]
    if cfg.bn_splits > 4:
        sizes["bn_splits"] = 4
    if cfg.crop == "full":
        sizes["crop"] = "resized"   # the images of a test are not photographs in files
    return configure(method, preset=preset, image_size=SIDES.get(preset, 32), **sizes | more)


def take_step(cfg, data):
    "One step of training: every weight is reached, and everything stays finite."
    learner = Learner(cfg, data, CPU)
    if clusters_of(cfg):
        fill_clusters(cfg, learner.net, data.train_x, data)
    learner.net.train()
    step = compute_loss(cfg, learner, data.train_x, data.train_y, data, 0, 1, torch.arange(len(data.train_y)))
    step.loss.backward()
    grads = {name: p.grad for name, p in learner.net.named_parameters() if p.requires_grad}
    idle = [name for name, grad in grads.items() if grad is None or not grad.isfinite().all() or not grad.any()]
    zero = cfg.zero_init == "yes"   # a residual block that ends in zeros passes no gradient to its inside
    assert step.loss.isfinite() and (zero or not idle), (cfg.method, idle)
    update_weights(cfg, learner, cfg.lr, 0, 1, step.new_keys)
    assert all(v.isfinite().all() for v in learner.tensors().values()), cfg.method


def test_every_recipe_is_tried():
    assert {*MEANT, *BEYOND} == {*recipes()}


@pytest.mark.slow
@pytest.mark.parametrize("preset", MEANT)
def test_every_recipe_takes_a_step(preset):
    "With its own encoder."
    data = random_images(8, SIDES.get(preset, 32), 4)
    take_step(small_recipe(preset, [*MEANT[preset]][0]), data)


@pytest.mark.slow
@pytest.mark.parametrize("preset", MEANT)
def test_every_method_of_a_recipe_takes_a_step(preset):
    "With the smallest encoder; the first one takes it with the recipe's own."
    torch.set_num_threads(1)
    data = random_images(8, SIDES.get(preset, 32), 4)
    for method in [*MEANT[preset]][1:]:
        take_step(small_recipe(preset, method, arch="resnet8"), data)


def test_every_row_of_the_recipes_is_somebodys():
    "A row that no method reads would be a misspelling."
    keys = {getattr(row.strategy, "key", "") for row in METHODS.values()} | {row.base for row in METHODS.values()}
    for name, recipe in recipes().items():
        assert {*recipe.rows} <= {*METHODS} | keys, name


def test_every_word_of_the_recipes_is_an_option():
    "Of some method that the row speaks of, its schedule and its probe included."
    from mixsupcon.core.methods import all_owners
    from mixsupcon.core.options import options
    known = {name for owner in all_owners() for name in options(owner)}
    for name, recipe in recipes().items():
        for row in (recipe.every, *recipe.rows.values(), recipe.also):
            assert {*row} <= known, (name, {*row} - known)


@pytest.mark.parametrize("scale", SCALES)
def test_every_row_of_every_study_is_a_run(scale):
    "And its figures are kinds that are drawn, and speak of rows that are there."
    for chapter in chapters(scale).values():
        for name, study in chapter.items():
            bases = [study.baseline] if isinstance(study.baseline, str) else study.baseline.values()
            assert {*bases} <= {*study.rows} and {study.measure, *study.shows} <= {*COLUMNS}, name
            for given in study.data.values():
                for row in study.rows.values():
                    configure(**given | row)
            for figure in study.figures:
                named = {*figure.options.get("cells", ()), *figure.options.get("points", ())}
                assert figure.kind in FIGURES and named <= {*study.rows}, (name, figure.kind)


@pytest.mark.parametrize("preset", MEANT | BEYOND)
def test_a_recipe_of_any_method_is_complete_or_refused(preset):
    "In one sentence."
    meant = (MEANT | BEYOND)[preset]
    for method in METHODS:
        try:
            assert configure(method, preset=preset).method == method
        except Refusal as error:
            assert "\n" not in str(error) and method not in meant, (method, str(error))


# ---- learning

def neighbours(cfg, learner, data):
    "The accuracy of five nearest neighbours."
    def view(x, rows):
        return normalise(x, data.mean, data.std)
    train, test = (embed(learner.net.encoder, x, view) for x in (data.train_x, data.test_x))
    return accuracy("knn5", knn(train, data.train_y, test, len(data.classes), 5), data.test_y)["value"]


def learned(method):
    "Neighbours' accuracy before and after training on fifty digits, until it is well above or the recipe ends; epochs."
    torch.set_num_threads(1)
    cfg = resolve_device(configure(method, preset="digits50", image_size=8, device="cpu"))
    data = load_data(cfg)
    learner = Learner(cfg, data, CPU)
    if clusters_of(cfg):
        fill_clusters(cfg, learner.net, data.train_x, data)
    before = after = neighbours(cfg, learner, data)
    for epoch in range(1, cfg.epochs + 1):
        train_epoch(cfg, learner, data.train_x, data.train_y, data, epoch)
        if epoch % 10 == 0:
            after = neighbours(cfg, learner, data)
        if after > before + .1:
            break
    return method, before, after, epoch


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_every_method_learns(half, capsys):
    "On fifty digits of 8 pixels: neighbours well above the untrained encoder's, at the latest at the end."
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:   # a process whose threads are set before torch computes
        seen = list(pool.map(learned, [*METHODS][half::2]))
    lines = [f"{method:20} untrained {before:.3f}, after {epochs} epochs {after:.3f}"
             for method, before, after, epochs in seen]
    with capsys.disabled():   # whether it passes or not
        print("\nknn5 on 360 digits, of fifty labelled ones", *lines, sep="\n")
    assert all(after > before + .05 for _, before, after, _ in seen), lines


# ---- refusals

@pytest.mark.slow
def test_a_collapse_stops_the_run(tmp_path):
    "SimSiam without batch norm in its head and with too large a rate ends in one output for all; a checkpoint stays."
    wild = dict(head="mlp", hidden=0, lr=1., weight_decay=.05, epochs=40, batch_size=16, save_seconds=0., device="cpu")
    data, cfg = random_images(64, 8, 4), resolve_device(configure("simsiam", **wild))
    with pytest.raises(Refusal, match="have collapsed to one in epoch .* batch norm"):
        pretrain(cfg, data, tmp_path)
    folder = run_folder(cfg, fingerprint(data), tmp_path)
    assert checkpoints(folder) and not (folder/"training.json").exists()


@pytest.mark.parametrize("given, sentence", [
    (dict(method="swav", small_crops=2, small_size=16), "not smaller than the images' 16"),
    (dict(method="wmse2", batch_size=64), "20 images do not fill a batch of 64")])
def test_sizes_that_do_not_fit_are_refused_before_training(tmp_path, given, sentence):
    with pytest.raises(Refusal, match=sentence):
        pretrain(configure(**given), random_images(20, 16), tmp_path)
