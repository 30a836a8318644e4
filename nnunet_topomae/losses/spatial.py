"""Losses of the spatial task: L_spa for key points (paper Sec. II-B), and that of VectorPOSE's vectors."""

import torch

from nnunet_topomae.types import KeyPoints, Scalar, Vectors, VectorTargets


def key_point_mse(predicted: KeyPoints, target: KeyPoints) -> Scalar:
    """L_spa: mean squared difference of two sets of key points, in float32 (paper Sec. II-B).

    Args:
        predicted: key points (B, 9, 3) in the normalised frame, [-1, 1] from face to face of the volume.
        target: true key points (B, 9, 3).

    Returns:
        A scalar: the mean over samples, points and axes.

    Example:
        >>> import torch
        >>> key_point_mse(torch.zeros(2, 9, 3), torch.full((2, 9, 3), 0.5)).item()
        0.25
    """
    return (predicted.float() - target.float()).square().mean()


def vector_l1(predicted: Vectors, target: VectorTargets) -> Scalar:
    """Sum of the mean absolute errors of radius, polar angle and azimuth, in float32 (Zhang et al. 2022).

    The ends of the azimuth's range, -1 and 1, are one direction, so its error is at most 1. The mean over the angles is
    weighted; it is 0 if no angle counts.

    Args:
        predicted: coordinates (B, 9, 3), see vectors.to_spherical.
        target: true coordinates, and how much the angles count (B, 9, 4), see vectors.vector_targets.

    Returns:
        A scalar in [0, 3].

    Example:
        >>> import torch
        >>> predicted = torch.tensor([0.5, 0.5, -0.9]).expand(1, 9, 3)
        >>> target = torch.tensor([0.5, 0.5, 0.9, 1.0]).expand(1, 9, 4)
        >>> round(vector_l1(predicted, target).item(), 4)  # not 1.8
        0.2
    """
    errors = (predicted.float() - target[..., :3].float()).abs()
    radius, polar, azimuth = errors.unbind(dim=-1)
    weights = target[..., 3].float()
    angles = polar + torch.minimum(azimuth, 2.0 - azimuth)
    return radius.mean() + (weights * angles).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).eps)
