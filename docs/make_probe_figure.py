"""What a pre-training measures every few epochs: shares of the gradient, and the probe.

Usage: python docs/make_probe_figure.py studies/probe.jsonl

The file is ``metrics.jsonl`` of a pre-training; docs/watching.md says which. The picture goes to
``docs/images/probe.svg``.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

from nnunet_topomae.reports.training_plots import measured_curves

TARGET = Path(__file__).parent / "images" / "probe.svg"


if __name__ == "__main__":
    mpl.rcParams["svg.hashsalt"] = "probe"
    figure = measured_curves([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
    if figure is None:
        raise SystemExit(f"{sys.argv[1]} holds no probe and no shares of the gradient")
    figure.savefig(TARGET, metadata={"Date": None})
