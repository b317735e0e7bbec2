"bfloat16 on a CPU without kernels for it: float32's compute the same."
import pytest
import torch
from mixsupcon.core import models
from mixsupcon.core.configure import configure
from mixsupcon.core.models import has_bfloat16
from mixsupcon.lab.train import Learner, resolve_device, train_epoch


def trained(tiny, monkeypatch, method, precision, kernels):
    "The weights after an epoch on a CPU that has kernels for bfloat16, or has none."
    monkeypatch.setattr(models, "has_bfloat16", lambda device: kernels)
    cfg = resolve_device(configure(method=method, precision=precision, epochs=1, batch_size=10, image_size=8))
    learner = Learner(cfg, tiny, torch.device("cpu"))
    train_epoch(cfg, learner, tiny.train_x, tiny.train_y, tiny, 1)
    return torch.cat([weight.detach().flatten() for weight in learner.net.parameters()])


@pytest.mark.parametrize("method", ["supcon", "mixsupcon", "ce", "byol", "amix"])
def test_float32_kernels_compute_in_bfloat16(tiny, monkeypatch, method):
    "An epoch ends much nearer to autocast's weights than an epoch in float32 does."
    theirs = trained(tiny, monkeypatch, method, "bfloat16", True)
    ours = trained(tiny, monkeypatch, method, "bfloat16", False)
    exact = trained(tiny, monkeypatch, method, "float32", False)
    assert (ours - theirs).norm() < .5*(exact - theirs).norm()


def test_only_a_cpu_needs_it():
    "Other devices have kernels of their own; of this CPU PyTorch says which it has."
    assert has_bfloat16("cuda") and has_bfloat16("cpu") == torch.ops.mkldnn._is_mkldnn_bf16_supported()
