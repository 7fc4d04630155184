"""Stacked hourglass pose estimator that hands out the feature maps a loss head reads, by name and without hooks.

Source: Newell, Yang & Deng, "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016.
# B batch, S stacks, K keypoints, H, W heatmap size (px), C channels
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import InputError
from model.estimator import Layout, PoseOutput


@dataclass(frozen=True, kw_only=True)
class HourglassConfig:
    """Size of a stacked hourglass. The input is `stem_stride` times the heatmap, a multiple of `input_multiple`."""

    num_keypoints: int
    num_stacks: int = 2
    channels: int = 256
    depth: int = 4  # times that one hourglass halves its map
    stem_stride: int = 4  # 4: Newell's stem; 2: a light one for small inputs

    def __post_init__(self) -> None:
        if min(self.num_keypoints, self.num_stacks, self.depth) < 1:
            raise InputError(f"hourglass: num_keypoints, num_stacks and depth must be at least 1, found {self}")
        if self.channels < 4 or self.channels % 4:
            raise InputError(f"hourglass: channels must be a positive multiple of 4, found {self.channels}")
        if self.stem_stride not in (2, 4):
            raise InputError(f"hourglass: stem_stride must be 2 or 4, found {self.stem_stride}")

    @property
    def input_multiple(self) -> int:
        """Height and width of the input must be multiples of this (px), so that every upsampled map meets its skip."""
        return self.stem_stride << self.depth


class Residual(nn.Module):
    """Pre-activation bottleneck: 1x1 to half the width, 3x3, 1x1, added to the input (projected if the widths differ).

    Source: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016; the width as in Newell et al.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1)
        self.norm2 = nn.BatchNorm2d(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(mid_channels)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1)
        same_width = in_channels == out_channels
        self.projection: nn.Module = nn.Identity() if same_width else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out_channels, h, w) from (B, in_channels, h, w)."""
        y: Tensor = self.conv1(F.relu(self.norm1(x), inplace=True))
        y = self.conv2(F.relu(self.norm2(y), inplace=True))
        y = self.conv3(F.relu(self.norm3(y), inplace=True))
        y += self.projection(x)
        return y


class Hourglass(nn.Module):
    """One hourglass: halve `depth` times, come back up, add a skip at each scale."""

    def __init__(self, channels: int, *, depth: int) -> None:
        super().__init__()
        self.skips = nn.ModuleList(Residual(channels, channels) for _ in range(depth))
        self.encoders = nn.ModuleList(Residual(channels, channels) for _ in range(depth))
        self.bottleneck = Residual(channels, channels)
        self.decoders = nn.ModuleList(Residual(channels, channels) for _ in range(depth))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(B, C, h, w) and the decoders' outputs, finest first: (B, C, h/2, w/2), ..., (B, C, h/2^depth, w/2^depth)."""
        skipped: list[Tensor] = []
        for skip, encoder in zip(self.skips, self.encoders, strict=True):
            skipped.append(skip(x))
            x = encoder(F.max_pool2d(x, 2))
        x = self.bottleneck(x)
        decoded: list[Tensor] = []
        for decoder in self.decoders:  # coarsest first
            x = decoder(x)
            decoded.append(x)
            x = skipped.pop() + F.interpolate(x, scale_factor=2, mode="nearest")
        return x, tuple(reversed(decoded))


class Stack(nn.Module):
    """One stack: hourglass, then features, then heatmaps; the last 1x1 convolution reads the features."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        channels = config.channels
        self.hourglass = Hourglass(channels, depth=config.depth)
        self.to_features = nn.Sequential(
            Residual(channels, channels),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        self.to_heatmaps = nn.Conv2d(channels, config.num_keypoints, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Heatmaps (B, K, H, W) and features, finest first, from x (B, C, H, W)."""
        x, decoded = self.hourglass(x)
        penultimate: Tensor = self.to_features(x)
        return self.to_heatmaps(penultimate), (penultimate, *decoded)


class Merge(nn.Module):
    """A stack's features and heatmaps, each through a 1x1 convolution, as they are passed on to the next one."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.features = nn.Conv2d(config.channels, config.channels, 1)
        self.heatmaps = nn.Conv2d(config.num_keypoints, config.channels, 1)

    def forward(self, features: Tensor, heatmaps: Tensor) -> Tensor:
        """(B, C, H, W) from penultimate features (B, C, H, W) and heatmaps (B, K, H, W)."""
        merged: Tensor = self.features(features) + self.heatmaps(heatmaps)
        return merged


class StackedHourglass(nn.Module):
    """Image to `PoseOutput`. The input of stack s + 1 is stack s's *input* plus what `Merge` makes of its output."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _stem(config.channels, stride=config.stem_stride)
        self.stacks = nn.ModuleList(Stack(config) for _ in range(config.num_stacks))
        self.merges = nn.ModuleList(Merge(config) for _ in range(config.num_stacks - 1))

    def layout(self, heatmap_size: int) -> Layout:
        """The shape of what it puts out for heatmaps of this height and width (px)."""
        sizes = [heatmap_size >> halved for halved in range(self.config.depth + 1)]
        return Layout(
            num_stacks=self.config.num_stacks, features=tuple((self.config.channels, size, size) for size in sizes)
        )

    def forward(self, images: Tensor) -> PoseOutput:
        """Heatmaps and features of `images` (B, 3, stem_stride * H, stem_stride * W), already normalised.

        The features are those of the last stack: (B, C, H, W), (B, C, H/2, W/2), ..., (B, C, H/2^depth, W/2^depth).

        Raises:
            InputError: the image size is not a multiple of `config.input_multiple`.
        """
        multiple = self.config.input_multiple
        if images.shape[-2] % multiple or images.shape[-1] % multiple:
            found = f"{images.shape[-2]}x{images.shape[-1]}"
            raise InputError(f"hourglass: input height and width must be multiples of {multiple} px, found {found}")
        stack_input: Tensor = self.stem(images)
        heatmaps, features = self.stacks[0](stack_input)
        per_stack = [heatmaps]
        for merge, stack in zip(self.merges, self.stacks[1:], strict=True):
            stack_input = stack_input + merge(features[0], heatmaps)
            heatmaps, features = stack(stack_input)
            per_stack.append(heatmaps)
        return PoseOutput(torch.stack(per_stack, dim=1), features)


def paper_hourglass(num_keypoints: int) -> StackedHourglass:
    """The paper's estimator: 2 stacks, 256 channels, 256x256 input, 64x64 heatmaps.

    6.57 M parameters and 8.33 GMAC an image; the reference reports 8.43 M and 8.34. The 1.86 M between them are what a
    projection would add in each residual block of equal widths (28 of 256, one of 128), without arithmetic if it is
    built and never run: 6.57 + 1.86 = 8.43. Such blocks have none here.
    """
    return StackedHourglass(HourglassConfig(num_keypoints=num_keypoints))


def small_hourglass(num_keypoints: int) -> StackedHourglass:
    """An estimator for CPUs: 1 stack, 48 channels, 64x64 input, 32x32 heatmaps."""
    return StackedHourglass(
        HourglassConfig(num_keypoints=num_keypoints, num_stacks=1, channels=48, depth=3, stem_stride=2)
    )


def _stem(channels: int, *, stride: int) -> nn.Sequential:
    """Image to the first stack's input. At 256 channels the widths are Newell's: 64, 128, 128, 256."""
    half, quarter = channels // 2, channels // 4
    if stride == 2:
        return nn.Sequential(
            nn.Conv2d(3, half, 5, stride=2, padding=2),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            Residual(half, channels),
        )
    return nn.Sequential(
        nn.Conv2d(3, quarter, 7, stride=2, padding=3),
        nn.BatchNorm2d(quarter),
        nn.ReLU(inplace=True),
        Residual(quarter, half),
        nn.MaxPool2d(2),
        Residual(half, half),
        Residual(half, channels),
    )
