"""The encoder without mixsupcon: `from load import load_encoder, prepare`."""
import json
from pathlib import Path

from collections import OrderedDict
from functools import partial

import torch
from torch import nn
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


class Block(nn.Module):
    "Two 3×3 convolutions beside a shortcut: torchvision's BasicBlock."
    def __init__(self, inside: int, outside: int, stride: int = 1):
        super().__init__()
        conv = partial(nn.Conv2d, bias=False)
        fits = stride == 1 and inside == outside
        shortcut = None if fits else nn.Sequential(conv(inside, outside, 1, stride), nn.BatchNorm2d(outside))
        self.conv1, self.bn1 = conv(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(outside, outside, 3, 1, 1), nn.BatchNorm2d(outside)
        self.downsample = shortcut

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(h + (self.downsample(x) if self.downsample else x))


def init_convolutions(net: nn.Module) -> None:
    "Draw the weights of all convolutions anew, as torchvision's ResNets do."
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def resnet8(image_size: int) -> nn.Module:
    "The smallest ResNet, its parts named as in torchvision."
    net = nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(),
        layer1=nn.Sequential(Block(16, 16)), layer2=nn.Sequential(Block(16, 32, 2)),
        layer3=nn.Sequential(Block(32, 64, 2)), avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    init_convolutions(net)
    net.width = 64
    return net


def load_encoder():
    "The encoder: images (N, 3, H, W) from `prepare` to features (N, 64)."
    net = resnet8(32)
    net.load_state_dict(load_file(HERE/"model.safetensors"))
    return net.eval()


def prepare(images):
    "uint8 images (N, 3, H, W), or floats from 0 to 1, as the encoder takes them."
    config = json.loads((HERE/"config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    return ((images/255 if images.dtype == torch.uint8 else images) - mean)/std
