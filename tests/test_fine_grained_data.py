"CUB-200-2011 and FGVC-Aircraft: read from files in their true format; what is missing or damaged is a sentence."
import hashlib
import http.server
import random
import re
import shutil
import tarfile
import threading
from functools import partial

import pytest
import torch
from mixsupcon.core.options import refused
from mixsupcon.lab import data
from PIL import Image
from torchvision.datasets import FGVCAircraft
from torchvision.transforms.v2 import functional as tv

SPECIES = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
VARIANTS = ["707-320", "Boeing 717", "Model B200"]
USUAL = data.NORMALISATIONS["imagenet"]


def photograph(path, side=(70, 50)):
    "A JPEG whose colours change from left to right."
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(path.name)
    row = [tuple((start + 3*i) % 256 for start in (noise.randrange(256), 40, 90)) for i in range(side[0])]
    image = Image.new("RGB", side)
    image.putdata(row*side[1])
    image.save(path, quality=95)


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def birds(tmp_path):
    "CUB-200-2011 with four photographs of each of three species; those with an odd number are for training."
    root = tmp_path/"CUB_200_2011"
    names = [f"{kind}/{kind[4:]}_{i:04}_{7*i}.jpg" for kind in SPECIES for i in range(4)]
    for i, name in enumerate(names):
        photograph(root/"images"/name, (70 + i, 50) if i % 3 else (50, 60 + i))
    write_lines(root/"images.txt", [f"{i} {name}" for i, name in enumerate(names, 1)])
    write_lines(root/"classes.txt", [f"{i} {name}" for i, name in enumerate(SPECIES, 1)])
    write_lines(root/"image_class_labels.txt", [f"{i} {1 + (i - 1)//4}" for i in range(1, 13)])
    write_lines(root/"train_test_split.txt", [f"{i} {i % 2}" for i in range(1, 13)])
    write_lines(root/"bounding_boxes.txt", [f"{i} 1.0 1.0 9.0 9.0" for i in range(1, 13)])
    return root


@pytest.fixture
def planes(tmp_path):
    "FGVC-Aircraft with four photographs of each of three variants in each part, with all lists of the archive."
    root = tmp_path/"fgvc-aircraft-2013b"
    lists = dict(trainval=[], test=[])
    for label, kind in enumerate(VARIANTS):
        for i in range(8):
            name = f"{1000*label + i:07}"
            photograph(root/"data"/"images"/f"{name}.jpg")
            lists["trainval" if i % 2 else "test"].append(f"{name} {kind}")
    for part, lines in lists.items():
        write_lines(root/"data"/f"images_variant_{part}.txt", lines)
    for part, lines in dict(train=lists["trainval"][::2], val=lists["trainval"][1::2]).items():
        write_lines(root/"data"/f"images_variant_{part}.txt", lines)
    write_lines(root/"data"/"variants.txt", VARIANTS)
    return root


def read_birds(root, side=32, sizes=(6, 6, 3), download="never"):
    archive = data.CUB200._replace(sizes=sizes)
    return data.photographs(data.cub_files, archive, USUAL, root.parent, side, download, root.parent/"cache")


def read_planes(root, side=32, sizes=(12, 12, 3), download="never"):
    archive = data.AIRCRAFT._replace(sizes=sizes)
    return data.photographs(data.aircraft_files, archive, USUAL, root.parent, side, download, root.parent/"cache")


READERS = dict(birds=read_birds, planes=read_planes)


@pytest.fixture(params=READERS)
def one(request):
    "Each data set: the folder of its small version, and how it is read."
    return request.getfixturevalue(request.param), READERS[request.param]


def test_birds_are_divided_and_labelled_as_their_lists_say(birds):
    made = read_birds(birds)
    assert made.classes == SPECIES and (made.mean, made.std) == USUAL
    assert made.train_y.tolist() == made.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    names = dict(line.split() for line in (birds/"images.txt").read_text().splitlines())
    for part, numbers in ((made.train_x, range(1, 13, 2)), (made.test_x, range(2, 13, 2))):
        for x, number in zip(part, numbers):
            image = tv.resize(data.decode(birds/"images"/names[str(number)]), [32], antialias=True)
            assert torch.equal(x, tv.center_crop(image, [32]))


@pytest.mark.parametrize("split, name", [("trainval", "train"), ("test", "test")])
def test_planes_are_those_of_torchvisions_loader(planes, split, name):
    theirs, made = FGVCAircraft(planes.parent, split), read_planes(planes)
    assert made.classes == theirs.classes == VARIANTS and len(theirs) == 12
    x, y = getattr(made, f"{name}_x"), getattr(made, f"{name}_y")
    for i, (image, label) in enumerate(theirs):
        assert y[i] == label
        assert torch.equal(x[i], tv.center_crop(tv.resize(tv.pil_to_tensor(image), [32], antialias=True), [32]))


def test_at_224_pixels_training_and_test_images_are_those_of_a_folder(birds):
    made = read_birds(birds, side=0)
    paths = [birds/"images"/line.split()[1] for line in (birds/"images.txt").read_text().splitlines()]
    assert made.train_x.shape == made.test_x.shape == (6, 3, 224, 224)
    assert torch.equal(made.train_x[0], data.to_square(data.decode(paths[0]), 224))
    assert torch.equal(made.test_x[0], data.center_crop(data.resize(data.decode(paths[1]), 256), 224))


def test_a_second_reading_takes_the_store_and_has_the_same_hash(one, monkeypatch):
    root, read = one
    first = data.fingerprint(read(root))
    monkeypatch.setattr(data, "decode", None)
    assert data.fingerprint(read(root)) == first


def test_both_are_data_sets_by_name(tmp_path):
    for name, sizes in dict(cub200=(5994, 5794, 200), aircraft=(6667, 3333, 100)).items():
        row = data.DATASETS[name]
        _, archive, usual = row.args
        assert isinstance(row, partial) and archive.sizes == sizes and usual == USUAL
        assert len(archive.md5) == 32 and archive.url.startswith("https://")
        assert f"{archive.folder} is missing: unpack" in refused(row, tmp_path, 0, "never")


def test_a_missing_folder_says_what_to_do(tmp_path):
    for name, archive in dict(cub200="CUB_200_2011.tgz", aircraft="fgvc-aircraft-2013b.tar.gz").items():
        sentence = refused(data.DATASETS[name], tmp_path, 0, "never")
        assert f"unpack {archive} into {tmp_path}, or pass -p download missing to fetch it" in sentence


def files_of(root):
    "The lists that are read, and two of the photographs."
    lists = {"CUB_200_2011": ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"],
             "fgvc-aircraft-2013b": ["data/variants.txt", "data/images_variant_trainval.txt",
                                     "data/images_variant_test.txt"]}[root.name]
    return [root/name for name in lists], sorted(root.rglob("*.jpg"))[::7]


def test_each_missing_file_is_named(one):
    root, read = one
    lists, images = files_of(root)
    for path in lists + images:
        whole = path.read_bytes()
        path.unlink()
        assert re.search(rf"{path.name} is missing: unpack .*gz into {root.parent}$", refused(read, root))
        path.write_bytes(whole)
    read(root)


def test_each_list_that_lost_its_end_is_refused(one):
    "Within a line or between two; an image's name that lost its end may be that of a folder."
    root, read = one
    for path in files_of(root)[0]:
        whole = path.read_bytes()
        for length in {*range(0, len(whole) - 1, 11), *range(len(whole) - 40, len(whole) - 1)}:
            path.write_bytes(whole[:max(length, 0)])
            sentence = refused(read, root)
            kinds = "is damaged", "the lists in", " is missing", "cannot be decoded: Is a directory"
            assert any(kind in sentence for kind in kinds), sentence
        path.write_bytes(whole)
    read(root)


def test_all_lists_of_birds_cut_at_the_same_line_are_noticed_by_the_published_number(birds):
    for path in files_of(birds)[0]:
        if path.name != "classes.txt":
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:11]))
    assert "name 6 training and 5 test images of 3 classes, not 6 training and 6 test" in refused(read_birds, birds)


ALTERED = dict(
    image_of_another_class=("birds", "image_class_labels.txt", "12 3", "12 2", "image 12 in 003.Sooty_Albatross has"),
    class_that_is_not=("birds", "image_class_labels.txt", "12 3", "12 4", "has class 4"),
    part_that_is_not=("birds", "train_test_split.txt", "12 0", "12 2", "part 2"),
    another_number=("birds", "train_test_split.txt", "12 0", "13 0", "is not in all of its lists"),
    number_twice=("birds", "images.txt", "12 003", "11 003", "images.txt names 1 line twice"),
    renamed_class=("birds", "classes.txt", "3 003.Sooty", "3 003.Sooti", "in 003.Sooty_Albatross has class 3"),
    moved_to_test=("birds", "train_test_split.txt", "11 1", "11 0", "name 5 training and 7 test images"),
    unknown_variant=("planes", "data/images_variant_test.txt", "Boeing 717", "Boeing 718", "'Boeing 718' is not in"),
    in_both_parts=("planes", "data/images_variant_test.txt", "0000000", "0000001", "image 0000001 is in both parts"),
    without_variant=("planes", "data/images_variant_test.txt", " Boeing 717", "", "is cut short"),
    not_a_text=("planes", "data/images_variant_test.txt", "Boeing", "\udcff", "codec can't decode"),
    variant_left_out=("planes", "data/variants.txt", "Model B200\n", "", "'Model B200' is not in list"),
    variant_added=("planes", "data/variants.txt", "707-320", "707-320\nA380", "of 4 classes, not"))


@pytest.mark.parametrize("kind, name, old, new, sentence", ALTERED.values(), ids=ALTERED)
def test_an_altered_list_is_refused_in_a_sentence(request, kind, name, old, new, sentence):
    root = request.getfixturevalue(kind)
    text = (root/name).read_text()
    assert old in text
    (root/name).write_text(text.replace(old, new), errors="surrogateescape")
    assert sentence in (why := refused(READERS[kind], root)) and "again" in why


@pytest.mark.parametrize("keep", [0, 20, .5, .9])
def test_a_truncated_photograph_is_named(one, keep):
    root, read = one
    for path in files_of(root)[1]:
        whole = path.read_bytes()
        path.write_bytes(whole[:int(keep if keep > 1 else keep*len(whole))])
        assert f"{path} cannot be decoded" in refused(read, root)
        path.write_bytes(whole)


def test_a_photograph_replaced_by_a_folder_is_named(one):
    root, read = one
    path = files_of(root)[1][0]
    path.unlink()
    path.mkdir()
    assert f"{path} cannot be decoded" in refused(read, root)


def test_a_changed_photograph_changes_the_hash(one):
    root, read = one
    before = data.fingerprint(read(root))
    photograph(files_of(root)[1][0], (90, 40))
    assert data.fingerprint(read(root)) != before


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        "Nothing is printed."


@pytest.fixture
def served(tmp_path):
    "A server of the files in a folder, and its address."
    (tmp_path/"web").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=tmp_path/"web"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield tmp_path/"web", f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_archive_is_fetched_checked_and_unpacked(birds, served, tmp_path):
    web, address = served
    with tarfile.open(web/"CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(birds, "CUB_200_2011")
        tar.add(birds/"images.txt", "attributes.txt")   # lies beside the folder in the true archive
    whole = (web/"CUB_200_2011.tgz").read_bytes()
    archive = data.CUB200._replace(url=f"{address}/CUB_200_2011.tgz", md5=hashlib.md5(whole).hexdigest(),
                                   sizes=(6, 6, 3))
    read = partial(data.photographs, data.cub_files, archive, USUAL, tmp_path/"new", 32, cache=tmp_path/"cache 2")
    for harm in (whole[:-9], whole[:99] + b"x" + whole[100:]):
        (web/"CUB_200_2011.tgz").write_bytes(harm)
        assert "could not be fetched and unpacked (File not found or corrupted.)" in refused(read, download="missing")
        assert not (tmp_path/"new"/"CUB_200_2011").exists()
    (web/"CUB_200_2011.tgz").write_bytes(whole)
    assert data.fingerprint(read(download="missing")) == data.fingerprint(read_birds(birds))
    shutil.rmtree(web)
    assert data.fingerprint(read(download="missing")) == data.fingerprint(read_birds(birds))   # not fetched again
