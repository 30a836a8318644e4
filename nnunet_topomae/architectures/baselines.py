"""Networks that the paper compares with, from MONAI (extra `baselines`), for any patch size of a plan."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nnunet_topomae.types import Size3

BaselineName = Literal["unetr", "swin_unetr", "attention_unet"]
TOKEN = 16
SWIN_STRIDE = 32
SWIN_FEATURES = 48
UNUSED_PARTS = ("cross_attn", "norm_cross_attn")
ATTENTION_CHANNELS = (32, 64, 128, 256, 320)


class PaddedNetwork(nn.Module):
    """A network that takes sizes divisible by a number only, made to take all.

    Args:
        network: maps (B, C, D, H, W) to (B, K, D, H, W) for sizes divisible by ``multiple``.
        multiple: of D, H and W.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network = network
        self.multiple = multiple

    def forward(self, data: Float[Tensor, "B C D H W"]) -> Float[Tensor, "B K D H W"]:
        """Pad at the far ends with zeros, segment, crop.

        Args:
            data: crops (B, C, D, H, W) of any size.

        Returns:
            Logits (B, K, D, H, W) of the size of the crops.
        """
        size = data.shape[2:]
        padding = [amount for edge in reversed(size) for amount in (0, -edge % self.multiple)]
        logits: Tensor = self.network(functional.pad(data, padding))
        return logits[:, :, : size[0], : size[1], : size[2]]


def build_baseline(name: BaselineName, patch_size: Size3, in_channels: int, out_channels: int) -> PaddedNetwork:
    """One of MONAI's networks with its published widths.

    UNETR is ViT-B/16 with feature size 16, Swin UNETR has feature size 48, Attention U-Net has the widths of nnU-Net's
    first five stages.

    Args:
        name: which.
        patch_size: crop (D, H, W) in voxels.
        in_channels: C.
        out_channels: segmentation heads K.

    Raises:
        RuntimeError: MONAI is not installed.
    """
    try:
        from monai.networks.nets.attentionunet import AttentionUnet
        from monai.networks.nets.swin_unetr import SwinUNETR
        from monai.networks.nets.unetr import UNETR
    except ImportError as error:
        raise RuntimeError(
            f"network {name} comes from MONAI, which is not installed: pip install nnunet-topomae[baselines]"
        ) from error
    if name == "unetr":
        unetr = UNETR(in_channels, out_channels, img_size=_padded(patch_size, TOKEN))
        for part, module in unetr.named_modules():
            # MONAI builds them and never calls them; several processes would wait for their gradients.
            if part.rpartition(".")[2] in UNUSED_PARTS:
                module.requires_grad_(False)
        return PaddedNetwork(unetr, TOKEN)
    if name == "swin_unetr":
        return PaddedNetwork(SwinUNETR(in_channels, out_channels, feature_size=SWIN_FEATURES), SWIN_STRIDE)
    stages = len(ATTENTION_CHANNELS)
    strides = [2] * (stages - 1)
    network = AttentionUnet(3, in_channels, out_channels, ATTENTION_CHANNELS, strides)
    return PaddedNetwork(network, 2 ** (stages - 1))


def _padded(size: Sequence[int], multiple: int) -> list[int]:
    return [-(-edge // multiple) * multiple for edge in size]
