"""Validation of a pre-training: how well both networks rebuild fixed crops of the fold's training cases."""

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
from nnunet_topomae.data.loaders import CropLocationLoader, volume_shape
from nnunet_topomae.files import write_json
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.masking import CropMask, crop_mask, random_token_mask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.previews import Preview

PREVIEW_CASES = 4

CaseMetrics = dict[str, dict[str, float]]


def reconstruction_metrics(
    reconstruction: Float[ndarray, "C D H W"], target: Float[ndarray, "C D H W"], hidden: Bool[ndarray, "D H W"]
) -> dict[str, float]:
    """MSE and PSNR on hidden voxels, SSIM of the volume whose other voxels come from the input.

    PSNR (dB) and SSIM take the crop's own intensity range; both are perfect (infinite, 1) for a perfect
    reconstruction. SSIM is averaged over channels, with a window of at most 7 voxels; it is NaN for a crop thinner
    than 3 voxels.

    Args:
        reconstruction: the network's output.
        target: the crop.
        hidden: voxels that count: hidden ones inside the volume.

    Raises:
        ValueError: no voxel counts.
    """
    if not hidden.any():
        raise ValueError("no voxel of the crop is both hidden and inside the volume, so there is nothing to measure")
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
    """Mean distance of the nine key points in mm; one normalised unit is half the volume's size.

    Args:
        predicted: key points in the normalised frame of the volume, whose edges are at -1 and 1.
        true: those of the crop, in the same frame.
        location: place of the crop; only the shape of its volume matters here.
        spacing: voxel size along (D, H, W) in mm.
    """
    half_size = np.array(location.volume_shape) * np.array(spacing) / 2.0
    return float(np.linalg.norm((predicted - true) * half_size, axis=1).mean())


class ReconstructionValidation:
    """Rebuilds the central crop of every given case under a fixed mask. Padded voxels do not count.

    Args:
        predict: the network in evaluation mode, ``(data, mask) -> CoPretrainingOutput``.
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
            report: receives a line for every case and one for their mean.

        Returns:
            the content of ``summary.json``: mean and per-case metrics of the networks that were trained.
        """
        results: dict[str, CaseMetrics] = {}
        for number, case in enumerate(cases):
            preview, results[case] = self._validate(case, seed=number)
            report(f"{case}: " + ", ".join(f"PSNR {b} {m['psnr']:.2f} dB" for b, m in results[case].items()))
            if number < PREVIEW_CASES:
                preview.save(folder / "previews")
        mean = _mean(list(results.values()))
        report(f"Mean reconstruction: {mean}")
        summary = {"reconstruction": {"mean": mean, "cases": results}}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "summary.json", summary, indent=2)
        return summary

    def _validate(self, case: str, seed: int) -> tuple[Preview, CaseMetrics]:
        image = self.loader.image(case)
        location = CropLocation.centred(volume_shape(image), self.plan.shape.patch_size)
        volume = self.loader.cut(case, image, location)
        true = location.key_points()
        mask = self._mask(location, seed)
        hidden = mask.hidden[0, 0].cpu().numpy()
        with torch.no_grad():
            output = self.predict(volume[None].to(self.device), mask)
        counted = hidden & location.inside()
        images, points, metrics = {}, {}, {}
        for name, branch in output.present().items():
            image, points[name] = _to_numpy(branch)
            images[name] = image[0]
            metrics[name] = reconstruction_metrics(image, volume.numpy(), counted)
            metrics[name]["key_point_error_mm"] = key_point_error_mm(points[name], true, location, self.plan.spacing)
        first = volume[0].numpy()
        preview = Preview(
            case=case,
            input=first,
            masked=np.where(hidden, np.float32(0), first),
            hidden=hidden,
            vit=images.get("vit"),
            partner=images.get("partner"),
            spacing=self.plan.spacing,
            crop=location,
            key_points_true=true,
            key_points_vit=points.get("vit"),
            key_points_partner=points.get("partner"),
        )
        return preview, metrics

    def _mask(self, location: CropLocation, seed: int) -> CropMask:
        """The first mask of a seed that hides some voxel of the volume."""
        generator, shape = Generator().manual_seed(seed), self.plan.shape
        while True:
            tokens = random_token_mask(1, shape.token_grid, self.plan.config.pretraining.mask_ratio, generator)
            mask = crop_mask(tokens, shape.token_size, self.device)
            if (mask.hidden[0, 0].cpu().numpy() & location.inside()).any():
                return mask


def _mean(results: Sequence[CaseMetrics]) -> CaseMetrics:
    """Mean over cases of every metric of every network."""
    return {
        branch: {name: float(np.mean([result[branch][name] for result in results])) for name in metrics}
        for branch, metrics in results[0].items()
    }


def _to_numpy(branch: BranchOutput) -> tuple[Float[ndarray, "C D H W"], Float[ndarray, "9 3"]]:
    """Reconstruction and key points of the only sample, float32 on the CPU."""
    return branch.reconstruction[0].float().cpu().numpy(), branch.key_points[0].float().cpu().numpy()
