"ImageNet, ImageNet-100, Food-101, Tiny ImageNet, STL-10 without labels: read from files in their true format."
import hashlib
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mixsupcon.core.configure import configure
from mixsupcon.core.options import refused
from mixsupcon.core.recipe import EXAMPLES
from mixsupcon.lab import data, image_sets, streaming
from mixsupcon.lab.data import fingerprint
from mixsupcon.lab.train import images_to_learn, pretrain
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, STL10, Food101, ImageNet
from torchvision.datasets import imagenet as torchvision_imagenet
from torchvision.datasets.folder import ImageFolder
from torchvision.transforms.v2 import functional as tv

ROOT = Path(__file__).parents[1]
SYNSETS = ["n01440764", "n02090622", "n02869837"]   # the last two are of ImageNet-100
TRAIN, VAL = 3, 2   # images of each


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "project", lambda: tmp_path)


def jpeg(seed, side=(60, 44)):
    "The bytes of a JPEG of noise."
    x = np.random.default_rng(seed).integers(256, size=(side[1]//4, side[0]//4, 3), dtype=np.uint8)
    Image.fromarray(x).resize(side).save(file := io.BytesIO(), "JPEG", quality=90)
    return file.getvalue()


def tar_of(files, mode="w"):
    "The bytes of an archive."
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def meta_mat(synsets):
    "The devkit's table of classes: the leaves, and one class above them."
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
              "num_train_images")
    table = np.zeros((len(synsets) + 1, 1), dtype=[(name, object) for name in fields])
    for i, wnid in enumerate([*synsets, "n00000001"]):
        table[i, 0] = (i + 1, wnid, f"word of {wnid}, another", "a gloss", int(i == len(synsets)), np.zeros(0), 0, 1300)
    savemat(out := io.BytesIO(), dict(synsets=table))
    return out.getvalue()


def write_imagenet(root, monkeypatch, synsets=tuple(reversed(SYNSETS))):
    "The three archives of ImageNet, the devkit's order another than that of the names; their MD5s are torchvision's."
    train = {f"{wnid}.tar": tar_of({f"{wnid}_{i}.JPEG": jpeg(10*k + i) for i in range(TRAIN)})
             for k, wnid in enumerate(synsets)}
    truth = [1 + i % len(synsets) for i in range(VAL*len(synsets))]
    val = {f"ILSVRC2012_val_{i + 1:08}.JPEG": jpeg(100 + i) for i in range(len(truth))}
    devkit = {"ILSVRC2012_devkit_t12/data/meta.mat": meta_mat(synsets),
              "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt":
                  "".join(f"{i}\n" for i in truth).encode()}
    root.mkdir(parents=True)
    archives = dict(train=tar_of(train), val=tar_of(val), devkit=tar_of(devkit, "w:gz"))
    known = {part: (torchvision_imagenet.ARCHIVE_META[part][0], hashlib.md5(content).hexdigest())
             for part, content in archives.items()}
    monkeypatch.setattr(torchvision_imagenet, "ARCHIVE_META", known)
    for part, content in archives.items():
        (root/known[part][0]).write_bytes(content)
    return [root/known[part][0] for part in ("train", "val", "devkit")]


FEW = dict(imagenet=(9, 6, 3), imagenet100=(6, 4, 2))


def read_imagenet(place, name="imagenet", download="never", side=32):
    more = dict(classes=SYNSETS[1:]) if name == "imagenet100" else {}
    return getattr(image_sets, name)(place, side, download, place/"cache", FEW[name], **more)


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    "A folder with ImageNet's `train` and `val`."
    write_imagenet(tmp_path/"imagenet", monkeypatch)
    read_imagenet(tmp_path, download="missing")
    return tmp_path


# ImageNet

def test_the_archives_are_unpacked_as_by_torchvision(tmp_path, monkeypatch):
    archives = write_imagenet(tmp_path/"imagenet", monkeypatch)
    assert [path.name for path in archives] == [*image_sets.ARCHIVES]
    ours = read_imagenet(tmp_path, download="missing")
    for path in archives:
        path.unlink()   # what is unpacked is enough
    assert fingerprint(read_imagenet(tmp_path)) == fingerprint(ours)
    for split, x, y in (("train", ours.train_x, ours.train_y), ("val", ours.test_x, ours.test_y)):
        theirs = ImageNet(tmp_path/"imagenet", split)
        assert theirs.wnids == ours.classes == SYNSETS and len(theirs) == len(x)
        for i, (image, label) in enumerate(theirs):
            small = tv.center_crop(tv.resize(tv.pil_to_tensor(image), [32], antialias=True), [32])
            assert label == y[i] and torch.equal(x[i], small)


@pytest.mark.parametrize("name", image_sets.ARCHIVES)
@pytest.mark.parametrize("harm", ["missing", "short", "altered"])
def test_an_archive_that_is_not_whole_is_refused_and_leaves_nothing_behind(tmp_path, monkeypatch, name, harm):
    write_imagenet(tmp_path/"imagenet", monkeypatch)
    path = tmp_path/"imagenet"/name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if harm == "short" else whole[:600] + b"x" + whole[601:])
    if harm == "missing":
        path.unlink()
    sentence = refused(read_imagenet, tmp_path, download="missing")
    assert name in sentence and "cannot be unpacked in" in sentence and "\n" not in sentence
    assert not (tmp_path/"imagenet"/("val" if "val" in name else "train")).exists() or "devkit" in name
    path.write_bytes(whole)
    assert len(read_imagenet(tmp_path, download="missing").train_x) == 9


def test_an_interrupted_unpacking_is_begun_again(tmp_path, monkeypatch):
    write_imagenet(tmp_path/"imagenet", monkeypatch)
    (tmp_path/"imagenet"/"train.part"/"n01440764").mkdir(parents=True)
    (tmp_path/"imagenet"/"train.part"/"n01440764"/"half.JPEG").write_bytes(b"half")
    assert len(read_imagenet(tmp_path, download="missing").train_x) == 9


def test_missing_imagenet_says_what_to_get_where_to_put_it_and_which_option(tmp_path):
    for name in ("imagenet", "imagenet100"):
        sentence = refused(data.DATASETS[name], tmp_path, 0, "never")
        for word in (*image_sets.ARCHIVES, str(tmp_path/"imagenet"), "image-net.org", "-p download missing"):
            assert word in sentence


def test_images_that_are_not_sorted_into_classes_are_refused(unpacked):
    for path in [*(unpacked/"imagenet"/"val").glob("*/*")]:
        path.rename(unpacked/"imagenet"/"val"/path.name)
    for folder in (unpacked/"imagenet"/"val").glob("n*"):
        folder.rmdir()
    assert "val has no folder for each class" in refused(read_imagenet, unpacked)


def test_lost_images_and_classes_are_noticed(unpacked):
    gone = unpacked/"imagenet"/"train"/SYNSETS[1]/f"{SYNSETS[1]}_1.JPEG"
    whole = gone.read_bytes()
    gone.unlink()
    assert "name 8 training and 6 test images of 3 classes, not 9" in refused(read_imagenet, unpacked)
    assert "not 6 training and 4 test" in refused(read_imagenet, unpacked, "imagenet100")
    gone.write_bytes(whole)
    shutil.rmtree(unpacked/"imagenet"/"val"/SYNSETS[2])
    for name in FEW:
        assert f"{SYNSETS[2]} cannot be read: No such file" in refused(read_imagenet, unpacked, name)


@pytest.mark.parametrize("keep", [0, 20, .5, .9])
def test_a_truncated_photograph_of_imagenet_is_named(unpacked, monkeypatch, keep):
    path = unpacked/"imagenet"/"train"/SYNSETS[1]/f"{SYNSETS[1]}_1.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep if keep > 1 else keep*len(whole))])
    for name in FEW:
        assert f"{path} cannot be decoded" in refused(read_imagenet, unpacked, name)
    monkeypatch.setattr(streaming, "memory_for_images", lambda run: 0)
    assert f"{path} cannot be decoded" in refused(read_imagenet, unpacked)


def test_imagenet_that_does_not_fit_is_streamed_with_the_same_bits(unpacked, monkeypatch):
    memory = {name: read_imagenet(unpacked, name) for name in FEW}
    monkeypatch.setattr(streaming, "memory_for_images", lambda run: 0)
    for name, one in memory.items():
        other = read_imagenet(unpacked, name)
        assert isinstance(other.train_x, streaming.Images) and torch.equal(other.test_x[:], one.test_x)
        assert fingerprint(other) == fingerprint(one)
    monkeypatch.setattr(streaming, "read_block", None)   # what was read once is known of both
    assert [fingerprint(read_imagenet(unpacked, name)) for name in FEW] == [*map(fingerprint, memory.values())]


# ImageNet-100

def test_the_list_is_the_one_of_cmc():
    text = (ROOT/"mixsupcon"/"lab"/"imagenet100.txt").read_text()
    assert hashlib.md5(text.encode()).hexdigest() == "9974508e5d4cc0098b70e8b6a0fe6067" and len(text) == 1000
    assert '"lab/imagenet100.txt"' in (ROOT/"pyproject.toml").read_text()


def test_imagenet100_is_a_part_of_imagenet(unpacked):
    whole, part = (read_imagenet(unpacked, name) for name in FEW)
    assert torch.equal(part.train_x, whole.train_x[whole.train_y > 0]) and part.classes == whole.classes[1:]
    assert torch.equal(part.test_y, whole.test_y[whole.test_y > 0] - 1)


def test_a_folder_of_its_own_comes_first(unpacked):
    for part in ("train", "val"):
        for wnid in SYNSETS[1:]:
            shutil.copytree(unpacked/"imagenet"/part/wnid, unpacked/"imagenet100"/part/wnid)
    before = fingerprint(read_imagenet(unpacked, "imagenet100"))
    shutil.rmtree(unpacked/"imagenet")
    assert fingerprint(read_imagenet(unpacked, "imagenet100")) == before


# Food-101

DISHES = ["apple_pie", "ramen", "waffles"]


def write_food(place):
    "Food-101 with three photographs to learn from and two to test with of each dish, and all its lists."
    root, lists = place/"food-101", dict(train={}, test={})
    for k, dish in enumerate(DISHES):
        for i in range(5):
            path = root/"images"/dish/f"{100*k + 7*i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(10*k + i, (50 + i, 64)))
            lists["test" if i > 2 else "train"].setdefault(dish, []).append(f"{dish}/{path.stem}")
    (root/"meta").mkdir()
    for part, names in lists.items():
        (root/"meta"/f"{part}.json").write_text(json.dumps(names))
        (root/"meta"/f"{part}.txt").write_text("\n".join(sum(names.values(), [])) + "\n")
    (root/"meta"/"classes.txt").write_text("\n".join(DISHES) + "\n")
    return root


def read_food(place, download="never", archive=image_sets.FOOD101):
    return image_sets.food101(place, 32, download, place/"cache", archive._replace(sizes=(9, 6, 3)))


@pytest.mark.parametrize("split", ["train", "test"])
def test_food_is_that_of_torchvisions_loader(tmp_path, split):
    write_food(tmp_path)
    theirs, made = Food101(tmp_path, split), read_food(tmp_path)
    x, y = getattr(made, f"{split}_x"), getattr(made, f"{split}_y")
    assert made.classes == theirs.classes == DISHES and len(theirs) == len(x)
    for i, (image, label) in enumerate(theirs):
        assert y[i] == label
        assert torch.equal(x[i], tv.center_crop(tv.resize(tv.pil_to_tensor(image), [32], antialias=True), [32]))


def test_the_published_archives_are_torchvisions():
    from torchvision.datasets import FGVCAircraft
    assert (Food101._URL, Food101._MD5) == image_sets.FOOD101[1:3]
    assert FGVCAircraft._URL == data.AIRCRAFT.url


def test_each_food_list_that_lost_its_end_and_each_missing_file_is_refused(tmp_path):
    root = write_food(tmp_path)
    for name in ("train", "test"):
        path = root/"meta"/f"{name}.json"
        whole = path.read_bytes()
        for length in range(0, len(whole), 7):
            path.write_bytes(whole[:length])
            assert "is damaged" in refused(read_food, tmp_path)
        path.unlink()
        assert f"{name}.json is missing: unpack food-101.tar.gz" in refused(read_food, tmp_path)
        path.write_bytes(whole)
    (root/"images"/"ramen"/"100.jpg").unlink()
    assert "100.jpg is missing: unpack food-101.tar.gz" in refused(read_food, tmp_path)


@pytest.mark.parametrize("old, new, sentence", [
    ("ramen/107", "waffles/107", "lists waffles/107 under another dish"),
    ("ramen/107", "ramen/100", "a photograph is listed twice"),
    ('"ramen/107", ', "", "name 8 training and 6 test images of 3 classes, not 9 training"),
    ('"ramen":', '"soup":', "under another dish"),
    ("[", "{", "is damaged"),
    ('{"apple', '[{"apple', "is damaged")])
def test_an_altered_food_list_is_refused(tmp_path, old, new, sentence):
    path = write_food(tmp_path)/"meta"/"train.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert sentence in (why := refused(read_food, tmp_path)) and "again" in why


def test_a_truncated_photograph_of_food_is_named_also_where_it_is_streamed(tmp_path, monkeypatch):
    path = write_food(tmp_path)/"images"/"ramen"/"107.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path} cannot be decoded" in refused(read_food, tmp_path)
    monkeypatch.setattr(streaming, "memory_for_images", lambda run: 0)
    assert f"{path} cannot be decoded" in refused(read_food, tmp_path)


def test_food_that_does_not_fit_is_streamed_with_the_same_bits(tmp_path, monkeypatch):
    write_food(tmp_path)
    one = read_food(tmp_path)
    monkeypatch.setattr(streaming, "memory_for_images", lambda run: 0)
    other = read_food(tmp_path)
    assert isinstance(other.train_x, streaming.Images) and fingerprint(other) == fingerprint(one)


# Tiny ImageNet

def write_tiny(place):
    "Tiny ImageNet with three images of each of two classes to learn from and two each to test with."
    root, names = place/"tiny-imagenet-200", SYNSETS[:2]
    for k, name in enumerate(names):
        (root/"train"/name/"images").mkdir(parents=True)
        for i in range(3):
            (root/"train"/name/"images"/f"{name}_{i}.JPEG").write_bytes(jpeg(10*k + i, (64, 64)))
        boxes = "".join(f"{name}_{i}.JPEG\t0\t0\t62\t62\n" for i in range(3))
        (root/"train"/name/f"{name}_boxes.txt").write_text(boxes)
    (root/"val"/"images").mkdir(parents=True)
    for i in range(4):
        (root/"val"/"images"/f"val_{i}.JPEG").write_bytes(jpeg(50 + i, (64, 64)))
    lines = "".join(f"val_{i}.JPEG\t{names[i % 2]}\t0\t0\t62\t62\n" for i in range(4))
    (root/"val"/"val_annotations.txt").write_text(lines)
    (root/"wnids.txt").write_text("\n".join(reversed(names)) + "\n")
    return root


def read_tiny(place, download="never", archive=data.TINY):
    usual = data.NORMALISATIONS["tiny_imagenet"]
    return data.tiny_imagenet(usual, place, 0, download, place/"cache", archive._replace(sizes=(6, 4, 2)))


def test_each_damage_to_tiny_imagenet_is_a_sentence(tmp_path):
    root = write_tiny(tmp_path)
    assert read_tiny(tmp_path).classes == SYNSETS[:2]
    lists = root/"wnids.txt", root/"val"/"val_annotations.txt", root/"train"/SYNSETS[0]/f"{SYNSETS[0]}_boxes.txt"
    for path in lists:
        whole = path.read_bytes()
        last = len(whole.splitlines()[-1]) + 1   # the name stands first: a line that lost its boxes is whole
        for length in (0, len(whole) - last, len(whole) - last + 5):
            path.write_bytes(whole[:length])
            kinds = "is damaged", "the lists in", " is missing", "one class"
            assert any(kind in (why := refused(read_tiny, tmp_path)) for kind in kinds), why
        path.unlink()
        assert f"{path.name} is missing: unpack tiny-imagenet-200.zip" in refused(read_tiny, tmp_path)
        path.write_bytes(whole)
    path = root/"val"/"images"/"val_1.JPEG"
    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path} cannot be decoded" in refused(read_tiny, tmp_path)
    assert "or pass -p download missing to fetch it from http" in refused(data.DATASETS["tiny_imagenet"],
                                                                         tmp_path/"no", 0, "never")


def test_archives_are_checked_and_unpacked(tmp_path):
    "A zip and a tar; where the archive lies in the folder already, nothing is fetched."
    before = {read: fingerprint(read(tmp_path)) for read, write in ((read_tiny, write_tiny), (read_food, write_food))
              if write(tmp_path)}
    with zipfile.ZipFile(tmp_path/"tiny-imagenet-200.zip", "w") as file:
        for path in sorted((tmp_path/"tiny-imagenet-200").rglob("*")):
            file.write(path, path.relative_to(tmp_path))
    with tarfile.open(tmp_path/"food-101.tar.gz", "w:gz") as file:
        file.add(tmp_path/"food-101", "food-101")
    for read, archive in ((read_tiny, data.TINY), (read_food, image_sets.FOOD101)):
        name, new = Path(archive.url).name, tmp_path/"new"
        content = (tmp_path/name).read_bytes()
        known = archive._replace(url=f"file:///no-such-place/{name}", md5=hashlib.md5(content).hexdigest())
        new.mkdir(exist_ok=True)
        (new/name).write_bytes(content[:-9])
        assert "could not be fetched and unpacked" in refused(read, new, "missing", known)
        assert not (new/archive.folder).exists()
        (new/name).write_bytes(content)
        assert fingerprint(read(new, "missing", known)) == before[read]


# STL-10 without labels

def write_stl(place):
    "STL-10 with eight images a part; torchvision's class with the MD5s of these files."
    rng, root = np.random.default_rng(0), place/"stl10_binary"
    root.mkdir(parents=True)
    files = {"class_names.txt": "".join(f"{name}\n" for name in "abcd").encode()}
    for part in ("train", "unlabeled", "test"):
        files[f"{part}_X.bin"] = rng.integers(256, size=(8, 3, 96, 96), dtype=np.uint8).tobytes()
        files |= {f"{part}_y.bin": bytes([1, 2, 3, 4]*2)} if part != "unlabeled" else {}
    files["fold_indices.txt"] = b"0 1\n"*10
    for name, content in files.items():
        (root/name).write_bytes(content)
    sums = [[name, hashlib.md5(content).hexdigest()] for name, content in files.items() if name.endswith(".bin")]
    parts = dict(train_list=[s for s in sums if s[0][:4] != "test"], test_list=[s for s in sums if s[0][:4] == "test"])
    return type("STL10", (STL10,), parts)


def test_the_unlabelled_images_are_torchvisions_and_all_that_is_learned_from(tmp_path):
    source = write_stl(tmp_path)
    made, theirs = image_sets.stl10_unlabelled(tmp_path, 0, "never", source), source(tmp_path, "unlabeled")
    assert torch.equal(made.every_x, torch.from_numpy(theirs.data)) and made.every_x.shape[1:] == (3, 96, 96)
    assert torch.equal(made.test_x, torch.from_numpy(source(tmp_path, "test").data))
    x, y = images_to_learn(configure("simclr", dataset="stl10_unlabelled"), made)
    assert x is made.every_x and {*y.tolist()} == {-1}
    assert image_sets.stl10_unlabelled(tmp_path, 64, "never", source).every_x.shape[1:] == (3, 64, 64)


@pytest.mark.parametrize("part", ["train_X", "train_y", "unlabeled_X", "test_X", "test_y"])
def test_each_file_of_stl_that_is_not_whole_is_refused(tmp_path, part):
    source = write_stl(tmp_path)
    path = tmp_path/"stl10_binary"/f"{part}.bin"
    whole = path.read_bytes()
    for harmed in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(harmed)
        assert f"{path.name} is truncated or altered" in refused(
            image_sets.stl10_unlabelled, tmp_path, 0, "never", source)
    path.unlink()
    assert "is damaged or incomplete" in refused(image_sets.stl10_unlabelled, tmp_path, 0, "never", source)


def test_what_learns_from_classes_is_refused_before_anything_is_read(tmp_path):
    for method in ("supcon", "mixsupcon", "ce", "sup_npair"):
        cfg = configure(method, dataset="stl10_unlabelled", data_dir=str(tmp_path))
        sentence = refused(data.load_data, cfg)
        assert f"have no labels, and {method} learns from classes: pass -p dataset stl10, or -p method" in sentence
    sentence = refused(data.load_data, configure("moco", dataset="stl10_unlabelled", data_dir=str(tmp_path)))
    assert re.search("STL10 is not in .*: pass -p download missing to fetch it", sentence)


# The page of all data sets

def test_the_page_of_data_sets_says_what_the_readers_know():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT/"docs"/"data.md").read_text(), re.M)
    table = {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}
    assert table.keys() == data.DATASETS.keys() - EXAMPLES.keys()
    archives = dict(cub200=data.CUB200, aircraft=data.AIRCRAFT, tiny_imagenet=data.TINY, food101=image_sets.FOOD101)
    for name, archive in archives.items():
        sizes, folder, address, md5, _ = table[name]
        assert sizes == "{:,}, {:,}, {}".format(*archive.sizes) and folder == f"`{archive.folder}/`"
        assert address.endswith(f"]({archive.url})") and md5 == f"`{archive.md5}`"
    for name, sizes in image_sets.SIZES.items():
        assert table[name][0] == "{:,}, {:,}, {}".format(*sizes)
    theirs = dict(cifar10=CIFAR10, cifar100=CIFAR100, stl10=STL10)
    for name, source in theirs.items():
        assert table[name][1] == f"`{source.base_folder}/` or `{source.filename}`"
        assert table[name][3] == f"`{source.tgz_md5}`"
    assert re.findall(r"\w{32}", table["imagenet"][3]) == [
        torchvision_imagenet.ARCHIVE_META[part][1] for part in ("train", "val", "devkit")]
    photographs = [name for name, cells in table.items() if name in image_sets.SIZES or name in archives]
    for name in photographs:
        train, test, _ = (int(n.replace(",", "")) for n in table[name][0].split(", "))
        side = 64 if name == "tiny_imagenet" else 224
        assert table[name][4] == f"{3*side**2*(train + test)/1e9:.1f}", name


# In use

@pytest.mark.slow
def test_a_run_on_imagenets_photographs(unpacked, monkeypatch):
    "Crops are cut from the photographs; both names give runs of their own."
    for name, sizes in FEW.items():
        monkeypatch.setitem(image_sets.SIZES, name, sizes)
    monkeypatch.setattr(image_sets, "imagenet100_classes", lambda: SYNSETS[1:])
    folders = set()
    for name in FEW:
        cfg = configure("simclr", dataset=name, preset="digits", image_size=32, epochs=1, batch_size=4, crop="full",
                        data_dir=str(unpacked), device="cpu")
        folders.add(pretrain(cfg, data.load_data(cfg), unpacked/"runs"))
    assert len(folders) == 2 and all((folder/"net.safetensors").exists() for folder in folders)


def test_train_is_what_torchvisions_folder_reader_lists(unpacked):
    "Also a folder that somebody else has prepared."
    parts, classes = image_sets.list_classes(unpacked/"imagenet")
    for part, files in zip(("train", "val"), parts):
        theirs = ImageFolder(unpacked/"imagenet"/part)
        assert theirs.classes == classes and [(str(path), label) for path, label in theirs.samples] == files
