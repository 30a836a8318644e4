"""Validation of a pre-training: how well both networks rebuild fixed crops of the fold's training cases."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from skimage.metrics import structural_similarity
from torch import Generator

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.plan import Plan
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.masking import random_token_mask, token_to_voxel_mask
from nnunet_topomae.training.previews import Preview

PREVIEW_CASES = 4
BRANCHES = ("vit", "unetrpp")


def reconstruction_metrics(
    reconstruction: Float[ndarray, "C D H W"], target: Float[ndarray, "C D H W"], hidden: Bool[ndarray, "D H W"]
) -> dict[str, float]:
    """MSE and PSNR on hidden voxels, SSIM of the volume whose visible voxels come from the input.

    PSNR (dB) and SSIM take the crop's own intensity range; both are perfect (infinite, 1) for a perfect
    reconstruction. SSIM is averaged over channels, with a window of at most 7 voxels; it is NaN for a crop thinner
    than 3 voxels.
    """
    difference = (reconstruction - target)[:, hidden].astype(np.float64)
    mse = float(np.mean(difference**2))
    data_range = max(float(target.max() - target.min()), 1e-8)
    psnr = float(10.0 * np.log10(data_range**2 / mse)) if mse > 0 else float("inf")
    window = min(7, *target.shape[1:])
    window -= 1 - window % 2
    composed = np.where(hidden, reconstruction, target)
    ssim = float("nan")
    if window >= 3:
        pairs = zip(target, composed, strict=True)
        ssim = float(np.mean([structural_similarity(a, b, win_size=window, data_range=data_range) for a, b in pairs]))
    return {"mse": mse, "psnr": psnr, "ssim": ssim}


def key_point_error_mm(
    predicted: Float[ndarray, "9 3"],
    true: Float[ndarray, "9 3"],
    location: CropLocation,
    spacing: Sequence[float],
) -> float:
    """Mean distance of the nine key points in mm; one normalised unit is half the volume's size."""
    half_size = np.array(location.volume_shape) * np.array(spacing) / 2.0
    return float(np.linalg.norm((predicted - true) * half_size, axis=1).mean())


class ReconstructionValidation:
    """Rebuilds the central crop of every given case under a fixed mask.

    Args:
        predict: the network in evaluation mode, ``(data, token_mask) -> CoPretrainingOutput``.
        loader: reads the crops.
        plan: patch size, token size, spacing, mask ratio.
        device: device of the network.
    """

    def __init__(
        self,
        predict: Callable[..., CoPretrainingOutput],
        loader: CropLocationLoader,
        plan: Plan,
        device: torch.device,
    ) -> None:
        self.predict = predict
        self.loader = loader
        self.plan = plan
        self.device = device

    def run(self, cases: Sequence[str], folder: Path, report: Callable[[str], None]) -> dict[str, Any]:
        """Validate ``cases``, write ``summary.json`` and previews of the first few into ``folder``.

        Args:
            cases: case identifiers, in a fixed order.
            folder: nnU-Net's ``validation`` folder of the fold.
            report: receives a line for every case.

        Returns:
            the content of ``summary.json``: mean and per-case metrics of both networks.
        """
        results: dict[str, dict[str, dict[str, float]]] = {}
        for number, case in enumerate(cases):
            preview, results[case] = self._validate(case, seed=number)
            report(f"{case}: " + ", ".join(f"PSNR {b} {results[case][b]['psnr']:.2f} dB" for b in BRANCHES))
            if number < PREVIEW_CASES:
                preview.save(folder / "previews")
        names = list(next(iter(results.values()))["vit"])
        mean = {b: {n: float(np.mean([result[b][n] for result in results.values()])) for n in names} for b in BRANCHES}
        summary = {"reconstruction": {"mean": mean, "cases": results}}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2))
        return summary

    def _validate(self, case: str, seed: int) -> tuple[Preview, dict[str, dict[str, float]]]:
        volume, location = self._central_crop(case)
        true = location.key_points()
        generator = Generator().manual_seed(seed)
        shape = self.plan.shape
        mask = random_token_mask(1, shape.token_grid, self.plan.config.pretraining.mask_ratio, generator)
        with torch.no_grad():
            output = self.predict(volume[None].to(self.device), mask)
        hidden = token_to_voxel_mask(mask, shape.token_size)[0, 0].cpu().numpy()
        images, points, metrics = {}, {}, {}
        for name, branch in zip(BRANCHES, output, strict=True):
            image, points[name] = _to_numpy(branch)
            images[name] = image[0]
            metrics[name] = reconstruction_metrics(image, volume.numpy(), hidden)
            metrics[name]["key_point_error_mm"] = key_point_error_mm(points[name], true, location, self.plan.spacing)
        first = volume[0].numpy()
        preview = Preview(
            case=case,
            input=first,
            masked=np.where(hidden, np.float32(0), first),
            hidden=hidden,
            vit=images["vit"],
            unetrpp=images["unetrpp"],
            spacing=self.plan.spacing,
            crop=location,
            key_points_true=true,
            key_points_vit=points["vit"],
            key_points_unetrpp=points["unetrpp"],
        )
        return preview, metrics

    def _central_crop(self, case: str) -> tuple[torch.Tensor, CropLocation]:
        image = self.loader.image(case)
        patch = self.plan.shape.patch_size
        lower = [(size - edge) // 2 for size, edge in zip(image.shape[1:], patch, strict=True)]
        return self.loader.cut(case, image, lower, [lo + edge for lo, edge in zip(lower, patch, strict=True)])


def _to_numpy(branch: BranchOutput) -> tuple[Float[ndarray, "C D H W"], Float[ndarray, "9 3"]]:
    """Reconstruction and key points of the only sample, float32 on the CPU."""
    return branch.reconstruction[0].float().cpu().numpy(), branch.key_points[0].float().cpu().numpy()
