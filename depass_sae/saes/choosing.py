"""Dictionaries that choose among their features and that sae-lens has no class of: transcoders with topk, and groupmax.

topk keeps a token's k largest pre-activations. groupmax keeps the largest of each of k groups of neighbours. Neither
keeps one below 0. Importing this makes the architectures known to sae-lens.
"""

from dataclasses import dataclass

import torch
from sae_lens import SkipTranscoder, StandardSAE, StandardSAEConfig, Transcoder, TranscoderConfig, register_sae_class
from sae_lens.saes.topk_sae import TopK
from torch import Tensor, nn


class GroupMax(nn.Module):
    """k: the number of groups."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Tensor) -> Tensor:
        values, index = pre.unflatten(-1, (self.k, -1)).max(dim=-1, keepdim=True)
        groups = torch.zeros_like(pre).unflatten(-1, (self.k, -1))
        return groups.scatter(-1, index, values.relu()).flatten(-2)


@dataclass
class TopKTranscoderConfig(TranscoderConfig):
    k: int = 1

    @classmethod
    def architecture(cls) -> str:
        return "topk_transcoder"


@dataclass
class TopKSkipTranscoderConfig(TopKTranscoderConfig):
    @classmethod
    def architecture(cls) -> str:
        return "topk_skip_transcoder"


@dataclass
class GroupMaxSAEConfig(StandardSAEConfig):
    k: int = 1

    @classmethod
    def architecture(cls) -> str:
        return "groupmax"


@dataclass
class GroupMaxTranscoderConfig(TopKTranscoderConfig):
    @classmethod
    def architecture(cls) -> str:
        return "groupmax_transcoder"


@dataclass
class GroupMaxSkipTranscoderConfig(TopKTranscoderConfig):
    @classmethod
    def architecture(cls) -> str:
        return "groupmax_skip_transcoder"


class TopKTranscoder(Transcoder):
    def get_activation_fn(self) -> nn.Module:
        return TopK(self.cfg.k)


class TopKSkipTranscoder(TopKTranscoder, SkipTranscoder):
    pass


class GroupMaxSAE(StandardSAE):
    def get_activation_fn(self) -> nn.Module:
        return GroupMax(self.cfg.k)


class GroupMaxTranscoder(TopKTranscoder):
    def get_activation_fn(self) -> nn.Module:
        return GroupMax(self.cfg.k)


class GroupMaxSkipTranscoder(GroupMaxTranscoder, SkipTranscoder):
    pass


for _sae, _config in (
    (TopKTranscoder, TopKTranscoderConfig),
    (TopKSkipTranscoder, TopKSkipTranscoderConfig),
    (GroupMaxSAE, GroupMaxSAEConfig),
    (GroupMaxTranscoder, GroupMaxTranscoderConfig),
    (GroupMaxSkipTranscoder, GroupMaxSkipTranscoderConfig),
):
    register_sae_class(_config.architecture(), _sae, _config)
