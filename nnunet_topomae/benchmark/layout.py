"""What the demo trains and where it keeps everything. Light: the command line reads its defaults from here."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_topomae.nnunet.names import CONFIGURATION, FUSION_TRAINER, PLANS, UNETRPP_TRAINER

DATASET_ID = 777
DEMO_PLANS, FOLD = f"{PLANS}_demo", "0"
FUSION, SCRATCH = FUSION_TRAINER, UNETRPP_TRAINER
MODELS = {"fusion": FUSION, "scratch": SCRATCH}
RESULTS_FILE, SCORES_FILE, REPORT_FILE = "results.json", "scores.json", "report.html"


@dataclass(frozen=True)
class DemoSettings:
    """What decides the demo's result.

    Attributes:
        cases_train: number of training phantoms; fold 0 of nnU-Net's five is trained.
        cases_test: number of held-out phantoms.
        seed: seed of phantoms, masks and weights.
        shape: mean shape (D, H, W) of a phantom in voxels.
        patch_size: nnU-Net's crop (D, H, W) in voxels.
        batch_size: crops in a batch.
        pretraining_epochs: epochs of the masked pre-training.
        finetuning_epochs: epochs of each of the two supervised trainings.
        iterations_per_epoch: training steps in an epoch.
        validation_iterations: validation steps in an epoch.
        dims: channels of the UNETR++ stages; narrower than the default to suit a CPU.
        depth: transformer blocks in a UNETR++ stage.
    """

    cases_train: int = 10
    cases_test: int = 4
    seed: int = 0
    shape: tuple[int, int, int] = (40, 64, 64)
    patch_size: tuple[int, int, int] = (24, 32, 32)
    batch_size: int = 2
    pretraining_epochs: int = 10
    finetuning_epochs: int = 15
    iterations_per_epoch: int = 20
    validation_iterations: int = 3
    dims: tuple[int, ...] = (16, 32, 64, 128)
    depth: int = 1

    def section(self) -> dict[str, Any]:
        """The plan's `topomae` section of the demo.

        Learning rates are above the defaults, as suits a schedule of a few hundred steps. Prediction without mirroring
        takes an eighth of the time.
        """
        steps = {"iterations_per_epoch": self.iterations_per_epoch, "validation_iterations": self.validation_iterations}
        return {
            "architecture": {"vit": "tiny", "dims": list(self.dims), "depth": self.depth, "drop_path": 0.0},
            "pretraining": {
                **steps,
                "epochs": self.pretraining_epochs,
                "learning_rate": 1e-3,
                "warmup_steps": 20,
                "seed": self.seed,
            },
            "topology": {"region": "crop", "region_size": 24, "warmup_epochs": 2, "threads": 1},
            "finetuning": {
                **steps,
                "epochs": self.finetuning_epochs,
                "learning_rate": 3e-3,
                "pretrained_learning_rate": 3e-3,
                "warmup_steps": 20,
                "mirror_axes": [],
                "seed": self.seed,
            },
        }


@dataclass(frozen=True)
class DemoFolders:
    """Where everything lies below the output folder."""

    out: Path

    @property
    def raw(self) -> Path:
        """nnU-Net's raw data."""
        return self.out / "nnUNet_raw"

    @property
    def dataset(self) -> str:
        """Name of the data set's folder."""
        return f"Dataset{DATASET_ID:03d}_TopoMAEPhantom"

    @property
    def preprocessed(self) -> Path:
        """The data set's folder of preprocessed data."""
        return self.out / "nnUNet_preprocessed" / self.dataset

    def model(self, trainer: str) -> Path:
        """nnU-Net's result folder of a trainer with the demo's plans."""
        return self.out / "nnUNet_results" / self.dataset / f"{trainer}__{DEMO_PLANS}__{CONFIGURATION}"

    def fold(self, trainer: str) -> Path:
        """The trained fold inside :meth:`model`."""
        return self.model(trainer) / f"fold_{FOLD}"

    def prediction(self, model: str) -> Path:
        """Predictions of the held-out cases."""
        return self.out / "predictions" / model

    def environment(self) -> dict[str, str]:
        """Variables of nnU-Net's commands. Few workers: each costs 400 MB and seconds to start."""
        workers = str(max(1, min(4, (os.cpu_count() or 1) // 4)))
        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.out / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.out / "nnUNet_results"),
            "nnUNet_def_n_proc": workers,
            "nnUNet_n_proc_DA": workers,
            "nnUNet_compile": "f",  # compiling takes longer than this training
            "OMP_WAIT_POLICY": "PASSIVE",  # torch's threads share the cores with a data worker: waiting must not spin
            "PYTHONUNBUFFERED": "1",
        }
