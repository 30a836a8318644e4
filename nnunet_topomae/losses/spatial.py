"""L_spa: mean squared error of the nine key points (paper Sec. II-B)."""

from nnunet_topomae.types import KeyPoints, Scalar


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
