"""Validation of a pre-training: how well both networks rebuild fixed crops of the fold's training cases."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from skimage.metrics import structural_similarity
from torch import Generator, Tensor

from nnunet_topomae.architectures.copretraining import BranchOutput, CoPretrainingOutput
from nnunet_topomae.data.loaders import CropLocationLoader, volume_shape
from nnunet_topomae.files import write_json
from nnunet_topomae.geometry import CropLocation
from nnunet_topomae.masking import CropMask
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.training.copretraining import draw_mask
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.failures import results_can_be_written
from nnunet_topomae.training.monitors import show_previews
from nnunet_topomae.training.previews import Preview
from nnunet_topomae.training.spatial_errors import CROPS_PER_CASE, measure_spatial_errors

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
        hidden: voxels that count: those inside the volume that are hidden, or all where crops are corrupted.

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
    """Rebuilds the central crop of every given case, masked or corrupted as in training, but always in the same way.

    Padded voxels do not count.

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
        summary: dict[str, Any] = {"reconstruction": {"mean": mean, "cases": results}}
        section = self.plan.config.pretraining
        # Measuring takes at most a tenth of the training's steps, where a crop of each case is no more than that.
        crops = max(1, min(CROPS_PER_CASE, section.epochs * section.iterations_per_epoch // (10 * len(cases))))
        for errors in measure_spatial_errors(self.predict, self.loader, self.plan, cases, self.device, crops):
            report(errors.line())
            summary.setdefault("spatial", {})[errors.task] = errors.facts()
        with results_can_be_written():
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "summary.json", summary, indent=2)
        return summary

    def _validate(self, case: str, seed: int) -> tuple[Preview, CaseMetrics]:
        image = self.loader.image(case)
        location = CropLocation.centred(volume_shape(image), self.plan.shape.patch_size)
        volume = self.loader.cut(case, image, location)
        inputs, boundaries = volume, None
        if self.plan.config.pretraining.boundaries:
            inputs, boundaries = self.loader.corrupt(volume, case, np.random.default_rng(seed))
        mask = self._mask(location, seed)
        hidden = mask.hidden[0, 0].cpu().numpy()
        with torch.no_grad():
            output = self.predict(inputs[None].to(self.device), mask)
        counted = location.inside() if boundaries is not None else hidden & location.inside()
        found = {name: _to_numpy(branch) for name, branch in output.present().items()}
        metrics = {}
        for name, branch in found.items():
            metrics[name] = reconstruction_metrics(branch["reconstruction"], volume.numpy(), counted)
            if "key_points" in branch:
                error = key_point_error_mm(branch["key_points"], location.key_points(), location, self.plan.spacing)
                metrics[name]["key_point_error_mm"] = error
            if boundaries is not None:
                errors = np.abs(branch["boundaries"] - boundaries.numpy())[:, counted]
                metrics[name]["boundary_error"] = float(errors.mean())
        return self._preview(case, volume, inputs, boundaries, hidden, location, found), metrics

    def _preview(
        self,
        case: str,
        volume: Float[Tensor, "C D H W"],
        inputs: Float[Tensor, "C D H W"],
        boundaries: Float[Tensor, "C D H W"] | None,
        hidden: Bool[ndarray, "D H W"],
        location: CropLocation,
        found: Mapping[str, Mapping[str, ndarray]],
    ) -> Preview:
        """The first channel of everything."""
        shown: dict[str, Any] = {}
        for name in ("vit", "partner"):
            branch = found.get(name, {})
            shown[name] = branch["reconstruction"][0] if branch else None
            shown[f"boundaries_{name}"] = branch["boundaries"][0] if "boundaries" in branch else None
            shown[f"key_points_{name}"] = branch.get("key_points")
        return Preview(
            case=case,
            input=volume[0].numpy(),
            masked=np.where(hidden, np.float32(0), inputs[0].numpy()),
            hidden=hidden,
            boundaries=None if boundaries is None else boundaries[0].numpy(),
            spacing=self.plan.spacing,
            crop=location,
            key_points_true=location.key_points(),
            **shown,
        )

    def _mask(self, location: CropLocation, seed: int) -> CropMask:
        """The first mask of a seed that hides some voxel of the volume, if the plan hides any."""
        generator = Generator().manual_seed(seed)
        while True:
            mask = draw_mask(self.plan, 1, generator, self.device)
            hidden = mask.hidden[0, 0].cpu().numpy()
            if not self.plan.config.pretraining.masks or (hidden & location.inside()).any():
                return mask


def _mean(results: Sequence[CaseMetrics]) -> CaseMetrics:
    """Mean over cases of every metric of every network."""
    return {
        branch: {name: float(np.mean([result[branch][name] for result in results])) for name in metrics}
        for branch, metrics in results[0].items()
    }


def _to_numpy(branch: BranchOutput) -> dict[str, ndarray]:
    """What a network predicts of the only sample, by name, float32 on the CPU."""
    return {name: value[0].float().cpu().numpy() for name, value in branch._asdict().items() if value is not None}


def rebuild_crops(trainer: Any, cases: Sequence[str], folder: Path) -> None:
    """Rebuild fixed crops of training cases; metrics and pictures go to a folder. The first process does it alone.

    Args:
        trainer: of a pre-training; its log gets a line per case.
        cases: their names, in a fixed order.
        folder: for ``summary.json`` and ``previews``.
    """
    if trainer.local_rank != 0:
        return
    trainer.network.eval()
    loader = trainer.build_loader(list(cases))
    with torch.no_grad():
        ReconstructionValidation(unwrap(trainer.network), loader, trainer.plan, trainer.device).run(
            cases, folder, trainer.print_to_log_file
        )
    show_previews(
        trainer.logger.loggers, folder / "previews", max(0, min(trainer.current_epoch, trainer.num_epochs - 1))
    )
