"""L_spa: mean squared error of the nine key points (paper Sec. II-B)."""

from nnunet_topomae.types import KeyPoints, Scalar


def key_point_mse(predicted: KeyPoints, target: KeyPoints) -> Scalar:
    """Mean squared difference of two sets of key points (B, 9, 3) in the normalised frame, in float32."""
    return (predicted.float() - target.float()).square().mean()
