"A folder of one's own pictures: whatever shape it has, what is learned from and what is held out is lawful and said."
import json
import random

import pytest
import torch
from mixsupcon.core.configure import configure, departures
from mixsupcon.core.configure import read as read_record
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import identity, record, refused
from mixsupcon.lab import data
from mixsupcon.lab.data import Tree, fingerprint, hold_out, list_folder, load_data
from mixsupcon.lab.evaluate import Trained, linear_sweep, map_of, measures, write_reading
from mixsupcon.lab.experiment import Result, run_one, show_figure
from mixsupcon.lab.runs import check_seal, run_folder
from mixsupcon.lab.train import pretrain
from PIL import Image

TINY = dict(dataset="folder", preset="digits", image_size=16, epochs=1, batch_size=8, probe_epochs=2, device="cpu")


def paint(path, shade, kind="JPEG", side=16):
    "A picture whose pixels all differ a little from `shade`."
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(str(path)).randbytes(3*side*side)
    pixels = bytes(min(255, shade + value % 40) for value in noise)
    Image.frombytes("RGB", (side, side), pixels).save(path, kind)


def fill(root, *parts, n=10, classes=("cat", "dog", "emu")):
    "A folder with `n` pictures of each class in each part."
    for part in parts:
        for label, name in enumerate(classes):
            for i in range(n):
                paint(root/part/name/f"{name} {i}.jpg", 70*label)
    return root


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path/"pets", "")


@pytest.fixture
def pictures(tmp_path):
    "A folder of pictures without labels."
    for i in range(30):
        paint(tmp_path/"pictures"/f"{i}.png", 6*i, "PNG")
    return tmp_path/"pictures"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "Decoded images are stored beside the test's folder."
    monkeypatch.setattr(data, "project", lambda: tmp_path)


def read(root, method="simclr", **given):
    return load_data(configure(method, **TINY | dict(data_dir=str(root)) | given))


def names(root, share=.2):
    "The names of the images to learn from and of those held out."
    tree = Tree(root)
    _, (train, test, _), _ = list_folder(tree, share)
    return [{tree.name(path) for path, _ in part} for part in (train, test)]


# The split


@pytest.mark.parametrize("share, held", [(.2, 2), (.5, 5), (.01, 1), (.9, 9)])
def test_every_class_has_its_share_and_one_image_on_each_side(pets, share, held):
    if held > 1:
        own = read(pets, test_share=share)
        assert own.test_y.bincount().tolist() == [held]*3 and own.train_y.bincount().tolist() == [10 - held]*3
    files = [str(path) for path in (pets/"cat").iterdir()]
    train, test = hold_out(files, pets, share)
    assert len(test) == held and {*train} | {*test} == {*files} and not {*train} & {*test}


def test_the_split_is_the_same_for_every_seed_and_method(pets):
    first = fingerprint(read(pets, seed=0))
    assert {fingerprint(read(pets, method, seed=seed)) for method, seed in (("supcon", 1), ("ce", 2))} == {first}


def test_the_split_depends_on_names_alone(pets, tmp_path, monkeypatch):
    before = names(pets)
    pets.rename(tmp_path/"moved")
    (tmp_path/"moved"/"train").mkdir()
    for path in [path for path in (tmp_path/"moved").iterdir() if path.name != "train"]:
        path.rename(tmp_path/"moved"/"train"/path.name)
    paint(tmp_path/"moved"/"train"/"cat"/"cat 3.jpg", 200)   # another picture under the same name
    after = names(tmp_path/"moved")
    assert [{name.removeprefix("train/") for name in part} for part in after] == before


def test_an_image_more_moves_hardly_any_other(pets):
    train, test = names(pets)
    paint(pets/"cat"/"new.jpg", 0)
    later_train, later_test = names(pets)
    assert len(test - later_test) <= 1 and {name for name in test if name[:3] != "cat"} <= later_test


def test_the_order_of_the_files_does_not_matter(pets):
    files = sorted(str(path) for path in (pets/"dog").iterdir())
    drawn = {frozenset(hold_out(random.Random(i).sample(files, 10), pets, .3)[1]) for i in range(5)}
    assert len(drawn) == 1


@pytest.mark.parametrize("n, share, sentence", [
    (1, .2, "the class 'cat' has one image"), (5, .2, "too few to tell methods apart: pass a larger share"),
    (10, 0, "test_share 0 leaves no image to test with")])
def test_too_little_to_hold_out_is_refused(tmp_path, n, share, sentence):
    assert sentence in refused(read, fill(tmp_path/"few", "", n=n), test_share=share)


# Shapes


def test_every_shape_of_a_labelled_folder_is_the_same_data(tmp_path, pets):
    fill(tmp_path/"again", "train")
    fill(tmp_path/"deep"/"deeper", "")
    for root in (tmp_path/"again", tmp_path/"deep"):
        assert names(root)[1] == {f"train/{name}" if root.name == "again" else name for name in names(pets)[1]}


def test_val_is_the_test_set_only_where_there_is_no_test(tmp_path):
    fill(tmp_path/"both", "train", "val", n=6)
    own = read(tmp_path/"both")
    assert len(own.test_x) == 18 and "18 in val/ to test with, as there is no test/" in own.notes[0]
    fill(tmp_path/"both", "test", n=2)
    own = read(tmp_path/"both")
    assert len(own.test_x) == 6 and "6 in test/ to test with" in own.notes[0] and "beside train/: val" in own.notes[1]


def test_what_other_programs_leave_behind_changes_nothing_and_is_said(pets):
    before = fingerprint(read(pets))
    for name in (".ipynb_checkpoints/cat-checkpoint.jpg", "__MACOSX/cat/._0.jpg", "cat/.DS_Store", "cat/Thumbs.db",
                 "cat/.ipynb_checkpoints/0.jpg", "notes.txt"):
        (pets/name).parent.mkdir(parents=True, exist_ok=True)
        (pets/name).write_bytes(b"x")
    (pets/"loop").symlink_to(".")
    own = read(pets)
    assert fingerprint(own) == before and own.classes == ["cat", "dog", "emu"]
    assert "links into the data set: loop" in own.notes[1] and "cat/.DS_Store" in str(own.reading["ignored"])


def test_loose_images_beside_class_folders_are_left_out_and_said(pets):
    before = fingerprint(read(pets))
    paint(pets/"loose.jpg", 9)
    assert fingerprint(read(pets)) == before and "images beside the class folders: loose.jpg" in read(pets).notes[1]


@pytest.mark.parametrize("harm, sentence", [
    ("test/0.jpg", "test has no class folders"), ("test/fox/0.jpg", "has a class 'fox' that"),
    ("val/cat/0.jpg", "")])
def test_a_test_folder_of_other_classes_is_refused(tmp_path, harm, sentence):
    root = fill(tmp_path/"pets", "train")
    paint(root/harm, 0)
    assert sentence in refused(read, root)


def test_a_missing_folder_and_one_without_images_say_what_is_expected(tmp_path):
    assert "is missing: pass -p data_dir" in refused(read, tmp_path/"nowhere")
    (tmp_path/"empty").mkdir()
    assert "has no JPEG, PNG or WebP images" in refused(read, tmp_path/"empty")


@pytest.mark.parametrize("name", ["$x <script>", "寵物", "p"*200, "寵"*80], ids=["marks", "CJK", "200", "80 CJK"])
def test_a_folder_of_any_name_is_read_and_names_its_run(tmp_path, name):
    root = fill(tmp_path/name, "", n=8)
    cfg = configure("simclr", **TINY, data_dir=str(root))
    folder = run_folder(cfg, fingerprint(load_data(cfg)), tmp_path)
    assert folder.name.startswith("simclr-") and len(folder.name.encode()) < 255 and not {*"$<> /"} & {*folder.name}


def test_the_preset_of_a_folder_is_the_modest_one():
    for method in METHODS:
        cfg = configure(method, dataset="folder")
        assert (cfg.preset, departures(cfg)) == ("own_images", {}) and cfg.epochs <= 100
    assert "test_share" in refused(configure, "simclr", test_share=.3)   # no option of the digits


def test_options_of_a_folder_change_no_identity_by_themselves(tmp_path):
    fill(tmp_path/"pets", "train", "test", n=3)
    given = TINY | dict(data_dir=str(tmp_path/"pets"))
    cfgs = [configure("simclr", **given, test_share=share, bad_images=bad)
            for share in (.2, .4) for bad in ("refuse", "skip")]
    assert len({run_folder(cfg, fingerprint(load_data(cfg)), tmp_path) for cfg in cfgs}) == 1


def test_a_run_made_before_a_folder_had_options_is_the_same_run():
    cfg = configure("supcon", dataset="folder", preset="mixsupcon")
    saved = {name: value for name, value in record(cfg).items() if name not in ("test_share", "bad_images")}
    assert read_record(saved) == cfg and identity(read_record(saved), "d") == identity(cfg, "d")


# Images that cannot be read


def spoil(path, kind):
    "Make an image one that cannot be read."
    if kind == "dangling":
        path.unlink()
        path.symlink_to("nowhere.jpg")
    elif kind == "loop":
        path.unlink()
        path.symlink_to(path.name)
    elif kind == "deep":
        Image.new("I;16", (8, 8)).save(path, "PNG")
    else:
        path.write_bytes(path.read_bytes()[:kind])


@pytest.mark.parametrize("kind", [0, 100, 400, "dangling", "loop", "deep"])
def test_a_bad_image_is_refused_by_name_or_left_out_and_listed(pets, kind, tmp_path):
    train = sorted(names(pets)[0])
    spoil(pets/train[0], kind)
    sentence = refused(read, pets)
    assert train[0] in sentence and "-p bad_images skip" in sentence and "\n" not in sentence
    for _ in range(2):   # decoded, and read from the store
        own = read(pets, bad_images="skip")
        assert len(own.train_x) == 23 and len(own.test_x) == 6 and [*own.reading["left_out"]] == train[:1]
        assert f"left out: 1 image that cannot be read ({train[0]})" in " ".join(own.notes)
        assert "23 images to learn from" in own.notes[0] and len(own.reading["held_out"]) == 6
    assert train[0] in refused(read, pets)   # the store that others left it out of is not used


def test_all_images_left_out_are_listed_and_those_left_are_as_before(pets, tmp_path):
    whole, train = read(pets), sorted(names(pets)[0])
    for name in train[:9:2]:
        spoil(pets/name, 50)
    own = read(pets, bad_images="skip")
    assert torch.equal(own.test_x, whole.test_x)
    assert torch.equal(own.train_x, whole.train_x[[1, 3, 5, 7, *range(9, 24)]])
    write_reading(tmp_path, own)
    assert [*json.loads((tmp_path/"data.json").read_text())["left_out"]] == train[:9:2]


def test_a_class_of_bad_images_is_refused(pets):
    for name in names(pets)[1]:
        if name.startswith("dog"):
            spoil(pets/name, 50)
    assert "no image of the class 'dog' can be read" in refused(read, pets, bad_images="skip")


# Without labels


@pytest.mark.parametrize("shape", ["", "train", "train/all", "all", "all/deeper"])
def test_every_shape_without_labels_is_the_same_images(pictures, tmp_path, shape):
    (tmp_path/"other"/shape).parent.mkdir(parents=True, exist_ok=True)
    pictures.rename(tmp_path/"other"/shape) if shape else pictures.rename(tmp_path/"other")
    own = read(tmp_path/"other")
    assert own.classes == [] and {*own.train_y.tolist(), *own.test_y.tolist()} == {-1}
    assert (len(own.train_x), len(own.test_x)) == (24, 6) and "24 images without labels to learn from" in own.notes[0]


@pytest.mark.parametrize("method", ["supcon", "mixsupcon", "ce", "supclr_imix"])
def test_methods_that_learn_from_classes_name_others(pictures, method):
    sentence = refused(read, pictures, method)
    assert f"{method} learns from classes: pass -p method simclr" in sentence and "moco" in sentence


def test_every_method_that_is_named_takes_images_without_labels(pictures):
    for method in data.methods_without_classes():
        assert read(pictures, method, batch_size=None).classes == []
    assert read(pictures, "mixsupcon", label_sim="instance").classes == []


def test_all_images_are_learned_from_if_asked(pictures):
    own = read(pictures, test_share=0)
    assert len(own.train_x) == len(own.test_x) == 30 and "none held out" in own.notes[0]


def test_train_images_needs_classes(pictures):
    assert "train_images would be drawn evenly" in refused(read, pictures, train_images=10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "moco_imix", "swav", "byol_unmix", "mixsiam"])
def test_a_run_without_labels_is_measured_by_its_features(pictures, tmp_path, method, capsys):
    cfg = configure(method, **TINY, data_dir=str(pictures))
    own = load_data(cfg)
    run = Trained(pretrain(cfg, own, tmp_path/"runs"), own)
    assert [*measures(own, cfg)] == ["features"]
    rows = measures(own, cfg)["features"](run)["rows"]
    assert [row["metric"] for row in rows] == ["alignment", "uniformity", "fed"] and rows[0]["n"] == 6
    assert 0 <= rows[0]["value"] <= 4 and -4 <= rows[1]["value"] <= 0
    assert len(map_of(run)["xy"]) == 6 and map_of(run)["silhouette"] is None
    assert "these images have no labels" in refused(linear_sweep, run)


@pytest.mark.slow
def test_a_run_without_labels_ends_sealed_and_shown(pictures, tmp_path):
    cfg = configure("simclr", **TINY, data_dir=str(pictures), bad_images="skip")
    spoil(pictures/"3.png", 50)
    folder = run_one(cfg, tmp_path/"runs")
    sealed, weights = check_seal(folder), (folder/"encoder.safetensors").stat().st_mtime_ns
    assert folder.name.startswith("simclr-pictures-resnet8-s0-") and "features.json" in sealed["seals"]
    assert [*json.loads((folder/"data.json").read_text())["left_out"]] == ["3.png"]
    result = Result(run_one(cfg, tmp_path/"runs"))
    assert (folder/"encoder.safetensors").stat().st_mtime_ns == weights
    assert {*result.numbers.protocol} == {"features"} and "alignment" in repr(result)
    for name in ("views", "curves", "confusion", "tsne"):
        show_figure(result, name)


def test_unlabelled_images_beside_labelled_ones_are_for_methods_without_labels(pets):
    for i in range(15):
        paint(pets/"unlabelled"/f"{i}.jpg", 10*i)
    own = read(pets)
    assert own.classes == ["cat", "dog", "emu"] and len(own.every_x) == 24 + 15 and len(own.train_x) == 24
    assert "15 without labels" in own.notes[0]


def test_a_batch_larger_than_the_folder_is_said(pictures):
    assert "batch_size 64 is more than the 24 images" in read(pictures, batch_size=64).notes[-1]
    assert len(read(pictures).notes) == 1


def test_what_does_not_fit_into_memory_is_read_from_the_disk(pets):
    streamed, whole = (read(pets, memory_gb=size) for size in (1e-6, 1.))
    assert not torch.is_tensor(streamed.train_x) and torch.is_tensor(whole.train_x)
    assert fingerprint(streamed) == fingerprint(whole)
