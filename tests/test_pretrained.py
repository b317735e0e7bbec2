"""Weights to start from: what a file holds is what the encoder and its copies hold, or one sentence and no change."""
import pickle
from types import SimpleNamespace

import pytest
import torch
import torchvision
from mixsupcon.core.configure import configure
from mixsupcon.core.models import TORCHVISION, Net, imagenet_weights, load_pretrained, make_net, resnet, resnet8
from mixsupcon.core.options import identity, refused
from safetensors.torch import save_file
from torch import nn


def config(pretrained="", arch="resnet8", **given):
    "What building a network needs."
    usual = dict(zero_init="no", bn_splits=1, head="mlp", hidden=0, out=8, seed=0)
    return SimpleNamespace(**usual | dict(arch=arch, pretrained=str(pretrained)) | given)


def trained():
    "A small encoder whose batch norms have seen images."
    net = make_net(config(seed=7), 16).encoder
    net(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    return net


def same(encoder, state):
    "Whether an encoder has these weights and statistics; how many batches were counted does not matter."
    own = {k: v for k, v in encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    return all(torch.equal(v, state[k]) for k, v in own.items())


WRAPPED = {   # what programs save, from an encoder's weights
    "plain.pth": lambda state: state,
    "classifier.pth": lambda state: state | {"fc.weight": torch.ones(3, 64), "fc.bias": torch.ones(3)},
    "uncounted.pth": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "checkpoint.pth": lambda state: dict(epoch=3, model={f"module.{k}": v for k, v in state.items()}),
    "moco.pth": lambda state: dict(state_dict={f"module.encoder_q.{k}": v for k, v in state.items()} | {
        f"module.encoder_k.{k}": v + 1 for k, v in state.items()} | {"module.queue": torch.ones(4)}),
    "solo.ckpt": lambda state: dict(state_dict={f"momentum_backbone.{k}": v + 1 for k, v in state.items()} | {
        f"backbone.{k}": v for k, v in state.items()}),
    "plain.safetensors": lambda state: state,
    "net.safetensors": lambda state: {f"encoder.{k}": v for k, v in state.items()} | {
        f"momentum_encoder.encoder.{k}": v + 1 for k, v in state.items()}}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_encoder_and_its_momentum_encoder_have_the_weights_of_the_file(name, tmp_path):
    state, file = trained().state_dict(), tmp_path/name
    (save_file if file.suffix == ".safetensors" else torch.save)(WRAPPED[name](state), file)
    net = make_net(config(), 16, ("momentum_encoder",))
    head = [p.clone() for p in net.head.parameters()]
    assert not same(net.encoder, state)
    load_pretrained(net, config(file))
    assert same(net.encoder, state) and same(net.momentum_encoder["encoder"], state)
    assert all(torch.equal(a, b) for a, b in zip(head, net.head.parameters()))
    assert not any(p.requires_grad for p in net.momentum_encoder.parameters())


def test_split_batch_norm_takes_the_statistics_of_a_plain_one(tmp_path):
    encoder = trained()
    torch.save(encoder.state_dict(), tmp_path/"plain.pth")
    net = make_net(config(bn_splits=2), 16)
    load_pretrained(net, config(tmp_path/"plain.pth"))
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net.eval().encode(x), encoder.eval()(x))


def broken(path):
    "Files that are no weights, each with what the sentence names."
    class Code:
        def __reduce__(self):
            return print, ("code of a file was run",)
    state = trained().state_dict()
    torch.save(state, path/"cut.pth")
    (path/"cut.pth").write_bytes((path/"cut.pth").read_bytes()[:-500])
    (path/"empty.pth").write_bytes(b"")
    (path/"code.pth").write_bytes(pickle.dumps(Code(), 2))
    (path/"text.safetensors").write_text("no weights")
    torch.save([1, 2], path/"list.pth")
    torch.save(dict(state_dict=3), path/"number.pth")
    torch.save({}, path/"nothing.pth")
    torch.save(resnet("BasicBlock", (1, 1, 1, 1), 16).state_dict(), path/"other.pth")
    torch.save(state | {"layer1.1.conv1.weight": torch.ones(2)}, path/"deeper.pth")
    torch.save(state | {"conv1.weight": torch.ones(16, 3, 7, 7)}, path/"stem.pth")
    unreadable = dict.fromkeys(("cut.pth", "empty.pth", "code.pth", "text.safetensors", "list.pth", "number.pth"),
                               "cannot be read")
    misfit = {"nothing.pth": "is missing", "other.pth": "does not fit resnet8: conv1.weight is (64, 3, 3, 3) instead",
              "deeper.pth": "layer1.1.conv1.weight has no place", "stem.pth": "images above 64 pixels"}
    return unreadable | misfit | {"absent.pth": "there is no file"}


def test_what_is_no_weights_or_does_not_fit_is_refused_and_changes_nothing(tmp_path, capsys):
    net = make_net(config(), 16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for name, words in broken(tmp_path).items():
        sentence = refused(load_pretrained, net, config(tmp_path/name))
        assert words in sentence and name in sentence and "\n" not in sentence, sentence
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()), name
    assert "code of a file" not in capsys.readouterr().out


@pytest.mark.slow
def test_imagenet_weights_are_torchvisions_own(tmp_path, monkeypatch):
    "From its own folder of downloads, where a file of that name stands in for the weights."
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    theirs = torchvision.models.resnet18()
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    (tmp_path/"hub/checkpoints").mkdir(parents=True)
    torch.save(theirs.state_dict(), tmp_path/"hub/checkpoints"/weights.url.split("/")[-1])
    net = Net(resnet("BasicBlock", (2, 2, 2, 2), 224), nn.Identity())
    load_pretrained(net, config("imagenet", "resnet18"))
    x = torch.randn(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))
    theirs.fc = nn.Identity()
    assert torch.equal(net.encoder.eval()(x), theirs.eval()(x))
    small = Net(resnet("BasicBlock", (2, 2, 2, 2), 32), nn.Identity())
    assert "images above 64 pixels" in refused(load_pretrained, small, config("imagenet", "resnet18"))


def test_every_arch_with_imagenet_weights_is_in_torchvision_and_others_are_refused():
    for name in TORCHVISION.values():
        assert "IMAGENET1K_V1" in torchvision.models.get_model_weights(name).__members__
    assert "torchvision has no weights of resnet8" in refused(imagenet_weights, "resnet8")


def test_weights_that_cannot_be_fetched_are_refused_with_their_address(tmp_path, monkeypatch):
    def fetch(*args, **kwargs):
        raise OSError("no network")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", fetch)
    sentence = refused(imagenet_weights, "resnext50")
    assert "https://" in sentence and "no network" in sentence and "pretrained=FILE" in sentence


def test_without_the_option_nothing_changes_and_the_identity_is_as_it_was():
    net = Net(resnet8(16), nn.Identity())
    before = {k: v.clone() for k, v in net.state_dict().items()}
    load_pretrained(net, config())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with_option = configure(pretrained="imagenet", arch="resnet18")
    assert identity(with_option, "data") != identity(configure(arch="resnet18"), "data")
    assert "zero_init changes nothing" in refused(configure, pretrained="imagenet", zero_init="yes")
