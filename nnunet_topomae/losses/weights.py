"""Which terms of the pre-training loss have a weight, and what they train. Supervised trainings ask for it too."""

from nnunet_topomae.architectures.copretraining import Branch
from nnunet_topomae.config import PretrainingConfig, TopologyConfig


def term_weights(pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True) -> dict[str, float]:
    """Weight of every term in the overall loss (paper Sec. II-C; lambdas 0.5, 0.1, 0.1).

    Vectors have the weights of key points. Each of the two terms of boundary-focused reconstruction has that of L_MSE.

    Args:
        pretraining: the lambdas, the spatial task and the target of the reconstruction.
        topology: whether there is a topological term, and its extra factor `topology.weight` (paper: 1).
        with_vit: whether the plan has a ViT; without one the partner's loss is all.

    Returns:
        The weights by the names of the terms.

    Example:
        >>> weights = term_weights(PretrainingConfig(), TopologyConfig())
        >>> round(weights["mse_vit"], 6), round(weights["topo_vit"], 6), weights["rec_consis"]
        (0.4, 0.05, 0.1)
    """
    l1, l2, l3 = pretraining.lambda1, pretraining.lambda2, pretraining.lambda3
    if not with_vit:
        l1, l3 = 1.0, 0.0
    topo = l2 * topology.initial_weight if topology.enabled else 0.0
    branches = {"vit": 1.0 - l1, "partner": l1}
    weights = {"spa_consis": l3 if pretraining.key_points else 0.0, "rec_consis": l3}
    if pretraining.vectors:
        weights["vec_consis"] = l3
    for name, share in branches.items():
        reconstruction = share * (1.0 - 2.0 * l2)
        weights[f"mse_{name}"] = reconstruction if pretraining.masks else 0.0
        weights[f"topo_{name}"] = share * topo
        weights[f"spa_{name}"] = share * l2 if pretraining.key_points else 0.0
        if pretraining.boundaries:
            weights |= {f"clean_{name}": reconstruction, f"edge_{name}": reconstruction}
        if pretraining.vectors:
            weights[f"vec_{name}"] = share * l2
    return weights


def trained_branches(
    pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True
) -> tuple[Branch, ...]:
    """The networks that are trained: those with a term whose weight is not 0. The other one need not compute.

    Args:
        pretraining: the lambdas, the spatial task and the target of the reconstruction.
        topology: whether there is a topological term, and its extra factor.
        with_vit: whether the plan has a ViT.

    Returns:
        `vit`, `partner` or both.

    Raises:
        ValueError: every term has weight 0.
    """
    weights = term_weights(pretraining, topology, with_vit)
    consistency = sum(weight for name, weight in weights.items() if name.endswith("_consis"))
    branches: tuple[Branch, ...] = ("vit", "partner")
    trained = tuple(
        name
        for name in branches
        if consistency + sum(weight for term, weight in weights.items() if term.endswith(f"_{name}"))
    )
    if not trained:
        raise ValueError(
            f"lambda2 = {pretraining.lambda2} and lambda3 = {pretraining.lambda3} with pretraining.spatial = "
            f"{pretraining.spatial} and topology.enabled = {topology.enabled} leave every term of the loss with weight "
            "0. Lower pretraining.lambda2, or switch one of its terms on."
        )
    return trained


# Terms of a branch that read what its decoder gives, as rec_consis does; the spatial ones read its encoder alone.
_OF_DECODER = ("mse", "topo", "clean", "edge")


def trains_decoder(
    pretraining: PretrainingConfig, topology: TopologyConfig, with_vit: bool = True, branch: Branch = "partner"
) -> bool:
    """Whether a term with a weight reads what a decoder gives; without one it stays as random as it was.

    Args:
        pretraining: the lambdas, the spatial task and the target of the reconstruction.
        topology: whether there is a topological term, and its extra factor.
        with_vit: whether the plan has a ViT.
        branch: whose decoder.
    """
    weights = term_weights(pretraining, topology, with_vit)
    terms = [f"{term}_{branch}" for term in _OF_DECODER]
    return any(weights.get(name, 0.0) > 0 for name in (*terms, "rec_consis"))
