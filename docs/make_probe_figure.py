"""What a pre-training measured every few epochs: shares of the gradient, and the probe.

Usage: python docs/make_probe_figure.py RUN_FOLDER

The folder is that of a fold, as for ``nnunet-topomae report``. The picture goes to ``docs/images/probe.svg``.
"""

import sys
from pathlib import Path

from nnunet_topomae.reports.plots import draw
from nnunet_topomae.reports.training_plots import measured_curves
from nnunet_topomae.training.record import read_epochs

TARGET = Path(__file__).parent / "images" / "probe.svg"


def main(fold: Path) -> None:
    """Draw the picture that the page of the run has."""
    figure = measured_curves(read_epochs(fold))
    if figure is None:
        raise SystemExit(f"{fold} has measured nothing: set pretraining.probe_every in its plan")
    TARGET.write_bytes(draw(figure))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
