"""Where the gradient goes: the share of every term of the pre-training loss, and a topological weight that follows."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_topomae.architectures.copretraining import CoPretrainingNetwork
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.devices import average_terms_of_all_gpus, is_distributed, unwrap

# By encoder and term.
ByEncoder = dict[str, dict[str, float]]

TOPOLOGY = "topo_"
# Of an adapted weight; where it would leave them, the term has hardly any gradient, or next to no other term has.
LOWEST_WEIGHT, HIGHEST_WEIGHT = 1e-2, 1e3
RECORD_SHARES, RECORD_WEIGHTS = "gradient_shares", "topology_weight"


def gradient_norms(terms: Mapping[str, Tensor], parts: Mapping[str, nn.Module], scale: float = 1.0) -> ByEncoder:
    """Norm of the gradient of every term with respect to the trained parameters of every part.

    Neither ``.grad`` nor the graph of the terms is changed, so a step can go on with both.

    Args:
        terms: scalars, with their weights in the loss.
        parts: modules that computed them.
        scale: the terms are multiplied by it first, so that gradients do not vanish in half precision.

    Returns:
        Norms by part and term. Absent are terms that do not depend on a part.
    """
    parameters = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
    everything = [parameter for of_part in parameters.values() for parameter in of_part]
    norms: ByEncoder = {name: {} for name in parts}
    for term, value in terms.items():
        if not value.requires_grad:
            continue
        found = iter(torch.autograd.grad(value * scale, everything, retain_graph=True, allow_unused=True))
        for name, of_part in parameters.items():
            gradients = [gradient for gradient in (next(found) for _ in of_part) if gradient is not None]
            if gradients:
                norms[name][term] = float(torch.stack([gradient.norm() for gradient in gradients]).norm()) / scale
    return norms


def gradient_shares(norms: Mapping[str, Mapping[str, float]]) -> ByEncoder:
    """Every norm over the sum of the norms of all terms of its part; parts without a gradient are left out.

    Args:
        norms: by part and term; values that are not finite do not count.
    """
    finite = {part: {term: norm for term, norm in of.items() if math.isfinite(norm)} for part, of in norms.items()}
    totals = {part: sum(of.values()) for part, of in finite.items()}
    return {
        part: {term: norm / totals[part] for term, norm in of.items()} for part, of in finite.items() if totals[part]
    }


def weight_for_share(weight: float, share: float, wanted: float) -> float:
    """The weight with which a term would have the wanted share, if nothing else changed; half of the way, by ratio.

    Half of the way, because one batch was measured. A term with no share, or all of it, keeps its weight.

    Args:
        weight: today's.
        share: today's, 0 to 1.
        wanted: above 0 and below 1.
    """
    if not 0 < share < 1:
        return weight
    ratio = wanted / (1 - wanted) * (1 - share) / share
    return min(max(weight * math.sqrt(ratio), LOWEST_WEIGHT), HIGHEST_WEIGHT)


def describe_shares(shares: Mapping[str, Mapping[str, float]], weights: Mapping[str, float]) -> str:
    """One line for the log.

    Args:
        shares: by encoder and term.
        weights: adapted weights of the topological terms; empty where they are fixed.
    """
    parts = [f"{name}: {', '.join(f'{term} {share:.1%}' for term, share in of.items())}" for name, of in shares.items()]
    text = f"shares of the encoders' gradients: {'; '.join(parts)}"
    return text + "".join(f"; {name} now has the weight {weight:.3g}" for name, weight in weights.items())


class GradientWatch:
    """Measures the shares of all terms every few epochs, on the first fixed batch of monitoring.

    The batch, its masks and the network's mode (evaluation) are the same every time, and no random number is drawn, so
    a training with the measurement does the same steps as one without. The network computes without its wrappers:
    graphs of `torch.compile` cannot be run backwards several times. On several GPUs every process measures, and the
    mean of the norms counts.

    Attributes:
        found: what to add to the record of the epoch.

    Args:
        step: of the training; its loss gets the adapted weights.
        config: how often, and the wanted share.
        log: takes a line per measurement.
    """

    def __init__(self, step: CoPretrainingStep, config: TopoMAEConfig, log: Callable[[str], object]) -> None:
        network = unwrap(step.network)  # type: ignore[arg-type]
        assert isinstance(network, CoPretrainingNetwork)
        self.step, self.config, self.log = step, config, log
        self.network = network
        self.found: dict[str, Any] = {}
        self._due = False

    @property
    def adapts(self) -> bool:
        """Whether the weight of the topological terms follows their share."""
        return self.config.topology.enabled and self.config.topology.weight == "auto"

    def resume(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take the adapted weights where a training continues.

        Args:
            records: of the epochs that are done, oldest first.
        """
        weights = [record[RECORD_WEIGHTS] for record in records if RECORD_WEIGHTS in record]
        if self.adapts and weights:
            self.step.loss.factors = dict(weights[-1])

    def start(self, epoch: int) -> None:
        """Before the first batch of monitoring of an epoch.

        Args:
            epoch: counted from 0; the first one is measured.
        """
        every = self.config.pretraining.gradients_every
        self._due, self.found = every > 0 and epoch % every == 0, {}

    def __call__(self, batch: Mapping[str, Any], mask_seeds: Sequence[int], scale: float = 1.0) -> dict[str, Tensor]:
        """All terms of a fixed batch, with the full weight of L_topo; the first one of an epoch may be measured.

        Args:
            batch: as for :class:`CoPretrainingStep`.
            mask_seeds: of the samples' masks.
            scale: of the gradient scaler.
        """
        if not self._due:
            return self.step(batch, mask_seeds, 1.0)
        self._due, norms = False, {}
        try:
            with torch.enable_grad():
                measured = copy(self.step)
                measured.network = self.network
                terms = measured(batch, mask_seeds, 1.0)
                norms = gradient_norms(self.step.loss.weighted(terms), self.network.trained_encoders, scale)
        except torch.OutOfMemoryError:
            self.log("no shares of the gradient: not enough GPU memory. pretraining.gradients_every = 0 skips them")
            terms = self.step(batch, mask_seeds, 1.0)
        self._use(norms)
        return {name: term.detach() for name, term in terms.items()}

    def _use(self, norms: ByEncoder) -> None:
        if is_distributed():
            flat = {f"{part}/{term}": norm for part, of in norms.items() for term, norm in of.items()}
            norms = {}
            for name, norm in average_terms_of_all_gpus([flat]).items():
                part, _, term = name.partition("/")
                norms.setdefault(part, {})[term] = norm
        shares = gradient_shares(norms)
        if not shares:
            return
        self.found = {RECORD_SHARES: shares}
        if self.adapts:
            self._adapt(shares)
        self.log(describe_shares(shares, self.step.loss.factors if self.adapts else {}))

    def _adapt(self, shares: ByEncoder) -> None:
        factors, wanted = self.step.loss.factors, self.config.topology.auto_share
        for part, of in shares.items():
            name = f"{TOPOLOGY}{part}"
            if name in of:
                factors[name] = weight_for_share(factors.get(name, 1.0), of[name], wanted)
        self.found[RECORD_WEIGHTS] = dict(factors)
