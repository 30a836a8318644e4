"""The networks that a plan asks for."""

from nnunet_topomae.architectures.build import Tasks, build_copretraining_network
from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.losses.weights import trained_branches, trains_decoder
from nnunet_topomae.nnunet.plan import Plan


def pretraining_network(plan: Plan, in_channels: int) -> CoPretrainingNetwork:
    """ViT-MAE and its partner, rebuilding the image; a network or a decoder that no term trains stays as it is.

    Args:
        plan: sizes, architecture, masking and weights of the loss.
        in_channels: image channels.

    Raises:
        ValueError: no term of the loss has a weight, or the plan's network cannot be the ViT's partner.
    """
    architecture, pretraining = plan.config.architecture, plan.config.pretraining
    losses = pretraining, plan.config.topology, architecture.has_vit
    network = build_copretraining_network(
        plan.shape,
        in_channels,
        architecture,
        trained_branches(*losses),
        plan.network,
        pretraining.partner_masking,
        Tasks(pretraining.key_points, pretraining.vectors, pretraining.boundaries),
    )
    for branch in network.branches:
        if not trains_decoder(*losses, branch):
            network.freeze_decoder(branch)
    return network
