"Rows of tables and sounds: views by independent oracles, files in their true format, and every method on them."
import gzip
import math
import wave

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from mixsupcon.core import sounds
from mixsupcon.core.configure import configure
from mixsupcon.core.methods import METHODS
from mixsupcon.core.options import ConfigError, refused, stream
from mixsupcon.core.recipe import EXAMPLES, Rows, Sounds, examples_of, what_are
from mixsupcon.lab import speech, tables, train
from mixsupcon.lab.data import RUN, fingerprint, load_data, subset
from mixsupcon.lab.runs import checkpoints
from mixsupcon.lab.streaming import RawBatch, step_images
from mixsupcon.lab.train import Learner, compute_loss, load_net, pretrain, resolve_device, view_kinds


def run_of(**given):
    "What a loader asks a run for."
    return type("Run", (), given)()


@pytest.fixture
def asked(request):
    "The run that loaders see while a test is running."
    token = RUN.set(run_of(**getattr(request, "param", {})))
    yield
    RUN.reset(token)


# views

def voice(n=3, seed=0):
    "Random walks, which have all frequencies, as float samples."
    x = torch.randn(n, sounds.RATE, generator=stream(seed, "voice")).cumsum(1)
    return .5*(x - x.mean(1, keepdim=True))/x.abs().amax(1, keepdim=True)


def naive_log_mel(samples):
    "The spectrogram of one sound from the formulas alone, in double precision and loops."
    x, window = samples.double().numpy(), .5 - .5*np.cos(2*np.pi*np.arange(2048)/2048)
    x = np.concatenate([x[1024:0:-1], x, x[-2:-1026:-1]])
    power = np.array([abs(np.fft.rfft(x[512*i:512*i + 2048]*window))**2 for i in range(32)]).T
    top = 15 + 27*math.log(8)/math.log(6.4)
    edges = [200*m/3 if m < 15 else 1000*6.4**((m - 15)/27) for m in np.linspace(0, top, 34)]
    out = np.zeros((32, 32))
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:])):
        for k in range(1025):
            hertz = k*16000/2048
            height = min((hertz - low)/(middle - low), (high - hertz)/(high - middle))
            out[band] += max(height, 0)*2/(high - low)*power[k]
    level = 10*np.log10(np.maximum(out, 1e-10))
    return np.maximum(level - level.max(), -80)


def test_log_mel_is_that_of_the_formulas():
    for samples in voice():
        ours = sounds.log_mel(sounds.spectrum(samples[None]))[0, 0].numpy()
        assert abs(ours - naive_log_mel(samples)).max() < 2e-3


def test_log_mel_and_tempo_are_those_of_librosa():
    librosa = pytest.importorskip("librosa")
    x = voice()
    spectra, bands = sounds.spectrum(x), librosa.filters.mel(sr=16000, n_fft=2048, n_mels=32)
    theirs = np.stack([librosa.stft(v, n_fft=2048, hop_length=512, pad_mode="reflect") for v in x.numpy()])
    db = np.stack([librosa.power_to_db(bands @ abs(s)**2, ref=np.max) for s in theirs])
    assert abs(sounds.mel_bands().numpy() - bands).max() < 1e-7
    assert abs(sounds.log_mel(spectra)[:, 0].numpy() - db).max() < 1e-3
    for tempo in (.8, .93, 1.2):
        slower = np.stack([librosa.phase_vocoder(s, rate=tempo, hop_length=512) for s in theirs])
        slower = librosa.util.fix_length(slower, size=32, axis=2)
        ours = sounds.at_tempo(spectra, torch.full((3,), tempo)).numpy()
        assert abs(ours - slower).max() < 1e-4*abs(slower).max()


def test_a_change_of_the_draw_changes_one_row_alone():
    x, noise = voice(6), voice(2, 1)
    draw = sounds.draw_changes(Sounds(change=1.), 6, stream(0, "draw"))
    whole = sounds.changed(x, draw, noise)
    for i in range(6):
        alone = sounds.changed(x[i:i + 1], sounds.Changes(*(v[i:i + 1] for v in draw)), noise)
        assert (alone - whole[i]).abs().max() < .05   # decibels
    plain = sounds.plain(x)
    assert all((whole[i] - plain[i]).abs().max() > 3 for i in range(6))


def test_masks_are_binomial_on_numbers_and_never_on_categories():
    data = load_data(configure(dataset="wine"))
    raw = data.train_x.take(torch.zeros(2000).long())
    raw.more["numeric"] = 10
    cfg = configure("simclr", dataset="wine", mask=.3)
    seen = RawBatch(raw, 0, 2000, slice(None)).view(cfg, "view 1", data.mean, data.std)
    gone = (seen == 0).double()[:, :, 0, 0]
    assert not gone[:, 10:].any()
    assert abs(gone[:, :10].mean() - .3) < 4*(.3*.7/20_000)**.5
    assert (abs(gone[:, :10].mean(0) - .3) < 4.5*(.3*.7/2000)**.5).all()


@pytest.mark.parametrize("dataset", ["wine", pytest.param("tones", marks=pytest.mark.slow)])
def test_processes_that_share_a_batch_draw_its_views(dataset):
    cfg = configure("simclr", dataset=dataset, batch_size=8)
    data, rows = load_data(cfg), [torch.arange(8)]
    whole, *parts = (next(step_images(cfg, data.train_x, rows, view_kinds(cfg), 5, own))
                     for own in (slice(None), slice(0, 3), slice(3, 8)))
    for purpose in ("view 1", "view 2"):
        together = torch.cat([part.view(cfg, purpose, data.mean, data.std) for part in parts])
        assert (together - whole.view(cfg, purpose, data.mean, data.std)).abs().max() < .01
    one, two = (whole.view(cfg, purpose, data.mean, data.std) for purpose in ("view 1", "view 2"))
    assert not torch.equal(one, two)


# methods

def configured(method, dataset):
    "A short run, or the sentence with which it is refused."
    try:
        return configure(method, dataset=dataset, batch_size=16, epochs=1)
    except ConfigError as error:
        return str(error)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["wine", "tones"])
def test_every_method_takes_a_step_or_says_that_it_needs_images(dataset):
    data, refusals = load_data(configure(dataset=dataset)), {}
    rows = torch.arange(0, len(data.train_y), len(data.train_y)//16)[:16]
    for method in METHODS:
        cfg = configured(method, dataset)
        if isinstance(cfg, str):
            refusals[method] = cfg
            continue
        learner = Learner(resolve_device(cfg), data, torch.device("cpu"))
        images = next(step_images(cfg, data.train_x, [rows], view_kinds(cfg), 0))
        loss = compute_loss(cfg, learner, images, data.train_y[rows], data, 0).loss
        loss.backward()
        assert loss.isfinite(), method
        assert any(p.grad is not None and p.grad.any() for p in learner.net.encoder.parameters()), method
    assert {*refusals} == {"automix", "amix", "amix_i", "amix_c"}
    assert all("needs images" in sentence for sentence in refusals.values())


def random_examples(cfg, n=8):
    "Random rows or sounds in the shape of a run's data."
    gen, labels = stream(0, "examples"), (torch.arange(n) % 2).numpy()
    if isinstance(examples_of(cfg), Sounds):
        x = (3000*torch.randn(n, sounds.RATE, generator=gen)).short().numpy()
        x, labels = x.repeat(2, 0), labels.repeat(2).tolist()
        return speech.dataset_of(x, labels, x, labels, x[:2], 0.)
    groups = (10, 4, 40) if cfg.dataset == "covtype" else (28,)
    x = torch.randn(n, sum(groups), generator=gen).numpy()
    return tables.dataset_of(x, labels, x, labels, ["a", "b"], groups)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["imix_covtype", "imix_higgs1m", "imix_speech"])
def test_the_networks_of_the_paper_take_a_step(preset):
    for method in ("mocon_imix", "byol_imix"):
        cfg = resolve_device(configure(method, preset=preset, batch_size=8, device="cpu"))
        data = random_examples(cfg)
        learner = Learner(cfg, data, torch.device("cpu"))
        images = next(step_images(cfg, data.train_x, [torch.arange(8)], view_kinds(cfg), 0))
        step = compute_loss(cfg, learner, images, data.train_y[:8], data, 0)
        step.loss.backward()
        assert step.loss.isfinite() and learner.net.encoder.width == 2048
        assert all(p.grad is not None for p in learner.net.encoder.parameters())


@pytest.mark.parametrize("given, words", [
    (dict(mixer="cutmix"), "mixer cutmix needs images, and these are rows"),
    (dict(mixer="mixup fmix"), "mixer fmix needs images"),
    (dict(arch="resnet18"), "arch resnet18 does not take rows: pass arch mlp_small"),
    (dict(crop_min=.5), "crop_min changes nothing, for rows are not images"),
    (dict(image_size=32), "image_size changes nothing"),
    (dict(probe="lin_supcontrast"), "probe lin_supcontrast crops images"),
    (dict(transfer="digits"), "transfer is for images"),
    (dict(pretrained="imagenet"), "pretrained is for images"),
    (dict(bn_splits=4, batch_size=32, last_batch="drop"), "bn_splits and zero_init are for convolutional"),
    (dict(change=.2), "has no change, it is an option of Sounds"),
])
def test_what_rows_do_not_have_is_refused_in_a_sentence(given, words):
    sentence = refused(configure, "npair_imix", dataset="wine", **given)
    assert words in sentence and "\n" not in sentence


def test_what_images_and_sounds_do_not_have_is_refused_in_a_sentence():
    assert "arch mlp_imix takes no images" in refused(configure, "simclr", dataset="digits", arch="mlp_imix")
    assert "does not take sounds" in refused(configure, "simclr", dataset="tones", arch="resnet18")
    assert "has no mask" in refused(configure, "simclr", dataset="digits", mask=.2)
    assert "needs images" in refused(configure, "moco_mix", dataset="tones", mixer="amix")
    assert configure("npair_imix", dataset="tones", mixer="cutmix").mixer == "cutmix"   # spectrograms have boxes


def test_a_data_set_says_what_its_examples_are():
    assert examples_of(configure()) is None and isinstance(examples_of(configure(dataset="wine")), Rows)
    assert [what_are(configure(dataset=name)) for name in ("digits", "wine", "tones")] == ["images", "rows", "sounds"]
    assert {type(examples_of(configure("npair", dataset=name))) for name in EXAMPLES} == {*EXAMPLES.values()}


# runs

@pytest.mark.parametrize("method, dataset, given", [
    ("npair_imix", "wine", dict(mixer="manifoldmix")), ("mocon_imix", "digits_rows", dict(train_images=40)),
    pytest.param("byol_imix", "tones", dict(change=0.), marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, method, dataset, given):
    cfg = configure(method, dataset=dataset, epochs=2, save_seconds=0., **given)
    data, write = load_data(cfg), train.log
    whole = pretrain(cfg, data, tmp_path/"whole")

    def stop(folder, row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        write(folder, row)
    with monkeypatch.context() as patch:
        patch.setattr(train, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(cfg, data, tmp_path/"half")
    assert checkpoints(next((tmp_path/"half").iterdir()))
    again = pretrain(cfg, data, tmp_path/"half")
    nets = [load_net(folder).state_dict() for folder in (whole, again)]
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_data_are_the_same_twice_and_other_data_are_others():
    one, two = (load_data(configure(dataset="tones")) for _ in range(2))
    assert fingerprint(one) == fingerprint(two) != fingerprint(load_data(configure(dataset="tones", silence=0.)))
    few = subset(one, 24, stream(0, "few"))
    assert len(few.train_x) == 24 == len(few.train_y) and fingerprint(few) != fingerprint(one)
    louder = one._replace(train_x=one.train_x.take(slice(None)))
    louder.train_x.more["noise"] = louder.train_x.more["noise"]//2
    assert fingerprint(louder) != fingerprint(one)   # views depend on the noise


# CovType

def write_covtype(root, n=280, learned=140):
    "A table as scikit-learn stores CovType: rows, classes."
    rng, y = np.random.RandomState(0), np.arange(n) % 7 + 1
    x = np.concatenate([40*rng.randn(n, 10) + 9*y[:, None], np.eye(4)[rng.randint(4, size=n)],
                        np.eye(40)[rng.randint(40, size=n)]], 1)
    store_covtype(root, x, y)
    return x, y


def store_covtype(root, x, y):
    (root/"covertype").mkdir(parents=True, exist_ok=True)
    joblib.dump(x, root/"covertype"/"samples_py3", compress=9)
    joblib.dump(y.astype(np.int32), root/"covertype"/"targets_py3", compress=9)


def network_sees(root, split):
    "The training rows as a network takes them."
    token = RUN.set(run_of(split=split))
    data = tables.covtype(root, 0, "never", (280, 140))
    RUN.reset(token)
    return ((data.train_x.x - torch.tensor(data.mean))/torch.tensor(data.std)), data


def test_the_released_split_leaks_and_the_fixed_one_does_not(tmp_path):
    x, y = write_covtype(tmp_path)
    before = {split: network_sees(tmp_path, split) for split in ("fixed", "released")}
    x[140:, :10] += 1000   # the test rows alone
    store_covtype(tmp_path, x, y)
    after = {split: network_sees(tmp_path, split) for split in before}
    assert torch.equal(before["fixed"][0], after["fixed"][0])
    assert (before["released"][0] - after["released"][0]).abs().max() > .5
    for split, (rows, data) in after.items():
        assert torch.equal(data.train_x.x, torch.tensor(x[:140], dtype=torch.float32)), split
        assert torch.equal(data.test_x.x, torch.tensor(x[140:], dtype=torch.float32))   # no row is in both
        assert data.train_x.size == (10, 4, 40) and rows[:, 10:].unique().tolist() == [0, 1]


def broken(x, y, how):
    "A table altered in one way."
    x, y = x.copy(), y.copy()
    if how == "category":
        x[3, 10:14] = 0
    if how == "number":
        x[200, 2] = np.nan
    if how == "balance":
        y[0] = y[1]
    return (x[:-1], y[:-1]) if how == "row" else (x, y)


@pytest.mark.parametrize("how", ["category", "number", "balance", "row"])
def test_an_altered_covtype_is_refused(tmp_path, how):
    store_covtype(tmp_path, *broken(*write_covtype(tmp_path), how))
    assert "is not as published" in refused(tables.covtype, tmp_path, 0, "never", (280, 140))


def test_a_truncated_or_missing_covtype_is_refused(tmp_path):
    assert "CovType is not in" in refused(tables.covtype, tmp_path, 0, "never", (280, 140))
    write_covtype(tmp_path)
    file = tmp_path/"covertype"/"samples_py3"
    file.write_bytes(file.read_bytes()[:-500])
    assert "is damaged" in refused(tables.covtype, tmp_path, 0, "never", (280, 140))


# Higgs

def write_higgs(root, n=500, packed=True, change=None):
    "A file of `n` lines as Higgs is published; its rows."
    rng = np.random.RandomState(1)
    rows = np.concatenate([rng.randint(2, size=(n, 1)), rng.randn(n, 28)], 1).astype(np.float32)
    lines = [",".join(f"{v:.18e}" for v in row) for row in rows]
    lines = change(lines) if change else lines
    data = ("\n".join(lines) + "\n").encode()
    (root/("HIGGS.csv.gz" if packed else "HIGGS.csv")).write_bytes(gzip.compress(data) if packed else data)
    return rows


@pytest.mark.parametrize("asked", [dict(split="fixed", higgs_rows=50, columns="all")], indirect=True)
@pytest.mark.parametrize("packed", [True, False])
def test_higgs_is_streamed_to_the_released_rows(tmp_path, asked, packed, monkeypatch):
    rows = write_higgs(tmp_path, packed=packed)
    read, chunks = tables.higgs_chunks, []
    monkeypatch.setattr(tables, "higgs_chunks", lambda root, size: (
        chunks.append(len(part)) or part for part in read(root, 64)))
    data = tables.higgs(tmp_path, 0, "never", (400, 100))
    np.random.seed(1)
    wanted = np.random.choice(400, 50, replace=False)   # as i-Mix's code draws
    assert np.array_equal(data.train_x.x.numpy(), rows[wanted, 1:]) and max(chunks) == 64 and len(chunks) == 8
    assert np.array_equal(data.test_x.x.numpy(), rows[400:, 1:])
    np.testing.assert_allclose(data.mean, rows[wanted, 1:].mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("asked", [dict(split="released", higgs_rows=1_000_000, columns="low")], indirect=True)
def test_a_million_released_rows_are_all_rows_and_leak(tmp_path, asked):
    rows = write_higgs(tmp_path)
    data = tables.higgs(tmp_path, 0, "never", (400, 100))
    assert np.array_equal(data.train_x.x.numpy(), rows[:400, 1:22])
    np.testing.assert_allclose(data.mean, rows[:, 1:22].mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [
    lambda lines: lines[:-1], lambda lines: lines + lines[:1], lambda lines: [*lines[:9], lines[9][:60], *lines[10:]],
    lambda lines: [*lines[:9], "x," + lines[9].split(",", 1)[1], *lines[10:]],
    lambda lines: ["7" + lines[0][1:], *lines[1:]]])
def test_an_altered_higgs_is_refused(tmp_path, change):
    write_higgs(tmp_path, change=change)
    token = RUN.set(run_of(split="released", higgs_rows=0, columns="all"))
    assert "download it again" in refused(tables.higgs, tmp_path, 0, "never", (400, 100))
    RUN.reset(token)


@pytest.mark.parametrize("asked", [dict(split="fixed", higgs_rows=0, columns="all")], indirect=True)
def test_a_truncated_or_missing_higgs_is_refused(tmp_path, asked):
    assert "HIGGS.csv.gz is not in" in refused(tables.higgs, tmp_path, 0, "never", (400, 100))
    write_higgs(tmp_path)
    file = tmp_path/"HIGGS.csv.gz"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "is damaged" in refused(tables.higgs, tmp_path, 0, "never", (400, 100))


# own tables

@pytest.fixture
def people(tmp_path):
    "A table with numbers, text, truth values and classes, and a run on it."
    rng = np.random.RandomState(0)
    table = pd.DataFrame(dict(
        age=rng.randint(18, 80, 60), job=rng.choice(["cook", "smith"], 60), tall=rng.rand(60) < .5,
        zone=rng.randint(3, size=60), pay=rng.randn(60), label=rng.choice(["low", "high"], 60)))

    def load(table=table, method="simclr", name="people.csv", **given):
        table.to_csv(tmp_path/name, index=False)
        given = dict(dataset="table", data_dir=str(tmp_path/name), target="label") | given
        return load_data(configure(method, **given))
    return table, load


def test_a_table_is_its_numbers_and_its_categories(people):
    table, load = people
    data = load(categorical="zone", ignore="pay")
    assert data.train_x.size == (1, 2, 2, 3) and data.train_x.more["numeric"] == 1
    held = data.reading["held_out"]
    rest = [i for i in range(60) if i not in held]
    assert len(held) == 12 and sorted(data.train_x.x[:, 0].tolist()) == sorted(table.age[rest].tolist())
    assert (data.train_x.x[:, 1:3].sum(1) == 1).all() and data.mean[1:] == (0.,)*7
    assert abs(data.mean[0] - table.age[rest].mean()) < 1e-3   # of the training rows alone
    assert fingerprint(data) != fingerprint(load(categorical="zone", ignore="pay", target="job"))


def test_missing_values_are_refused_or_filled_by_name(people):
    table, load = people
    table.loc[::7, "pay"] = np.nan
    table.loc[::11, "job"] = None
    sentence = refused(load)
    assert "pay (9 of 60)" in sentence and "job (6 of 60)" in sentence and "-p missing mean" in sentence
    for how in ("mean", "median"):
        data = load(missing=how)
        rest = [i for i in range(60) if i not in data.reading["held_out"]]
        pay = next(column for column in data.reading["columns"] if column["name"] == "pay")
        assert pay["fill"] == pytest.approx(getattr(table.pay[rest], how)())
        assert "missing" in next(c["words"] for c in data.reading["columns"] if c["name"] == "job")


@pytest.mark.parametrize("change, given, words", [
    (lambda t: t, dict(target="salary"), "target 'salary' is no column: the table has age"),
    (lambda t: t, dict(target="pay"), "these are numbers and not classes"),
    (lambda t: t, dict(target="", method="supcon"), "supcon learns from classes"),
    (lambda t: t.assign(name=[f"n{i}" for i in range(60)]), {}, "pass -p ignore name"),
    (lambda t: t.assign(pay=np.inf), {}, "column pay has infinite numbers"),
    (lambda t: t.assign(label=["one", *["two"]*59]), {}, "class one of the target has one row"),
    (lambda t: t.assign(label=t.label.where(t.age > 30)), {}, "target label is missing in")])
def test_a_table_that_cannot_be_learned_from_is_refused(people, change, given, words):
    table, load = people
    assert words in refused(load, change(table), **given)


def test_parquet_is_read_or_refused_in_a_sentence(people, tmp_path, monkeypatch):
    (tmp_path/"t.parquet").write_bytes(b"PAR1")

    def without(*args, **kwargs):
        raise ImportError
    monkeypatch.setattr(pd, "read_parquet", without)
    assert "needs pyarrow: pip install pyarrow" in refused(tables.read_table, tmp_path/"t.parquet")
    monkeypatch.setattr(pd, "read_parquet", lambda path: people[0])
    assert tables.read_table(tmp_path/"t.parquet") is people[0]


# speech

@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    "A folder in the layout of Speech Commands."
    return speech.write_tones(tmp_path_factory.mktemp("spoken")/speech.FOLDER)


def copied(spoken, tmp_path):
    import shutil
    return shutil.copytree(spoken, tmp_path/speech.FOLDER)


def test_speech_commands_are_read_as_python_writes_them(spoken):
    data = speech.speech_commands(spoken.parent, 0, "never", (42, 28))
    assert data.classes == [*speech.COMMANDS, "unknown", "silence"] and data.train_x.shape[1:] == (1, 32, 32)
    listed = (spoken/"testing_list.txt").read_text().split()
    assert sorted(data.test_y.tolist()) == sorted(speech.class_number(name.split("/")[0]) for name in listed)
    names = speech.list_words(spoken)[1]
    with wave.open(str(spoken/names[0])) as file:
        samples = np.frombuffer(file.readframes(16000), "<i2")
    read = data.test_x.x[0].numpy()
    assert np.array_equal(read[:len(samples)], samples) and not read[len(samples):].any()
    assert data.train_y.bincount()[11] == 4 and data.test_y.bincount(minlength=12)[11] == 0   # silence
    train_names, test_names = speech.list_words(spoken)
    held = (spoken/"validation_list.txt").read_text().split()
    assert not {*train_names} & {*test_names} and not {*held} & {*train_names, *test_names}


def damage(root, how):
    "Alter a folder in one way."
    one = next((root/"yes").glob("*.wav"))
    tested = (root/"testing_list.txt").read_text()
    if how == "missing":
        (root/tested.split()[0]).unlink()
    if how == "truncated":
        one.write_bytes(one.read_bytes()[:-100])
    if how == "empty":
        one.write_bytes(b"")
    if how == "rate":
        one.write_bytes(one.read_bytes().replace((16_000).to_bytes(4, "little"), (44_100).to_bytes(4, "little"), 1))
    if how == "both":
        (root/"validation_list.txt").write_text(tested)
    if how == "list":
        (root/"testing_list.txt").unlink()
    if how == "word":
        import shutil
        shutil.rmtree(root/"go")
        for name in ("testing_list.txt", "validation_list.txt"):
            kept = [line for line in (root/name).read_text().split() if not line.startswith("go/")]
            (root/name).write_text("\n".join(kept))


@pytest.mark.parametrize("how, words", [
    ("missing", "is missing: unpack the archive again"), ("truncated", "is truncated"), ("empty", "cannot be read"),
    ("rate", "44,100 Hz"), ("both", "is in both lists"), ("list", "testing_list.txt cannot be read"),
    ("word", "has no folder go")])
def test_damaged_speech_is_refused_in_a_sentence(spoken, tmp_path, how, words):
    root = copied(spoken, tmp_path)
    damage(root, how)
    sentence = refused(speech.speech_commands, tmp_path, 0, "never", (42, 28))
    assert words in sentence and "\n" not in sentence


def test_speech_of_another_size_or_nowhere_is_refused(spoken, tmp_path):
    assert "not 51,088 and 6,835" in refused(speech.speech_commands, spoken.parent, 0, "never")
    assert "pass -p download missing" in refused(speech.speech_commands, tmp_path, 0, "never")
