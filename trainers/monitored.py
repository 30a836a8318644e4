"""What pre-training measures of itself every few epochs."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_topomae.data.labelled_crops import LabelledCrop, read_labelled_crop, spread
from nnunet_topomae.data.loaders import CropLocationLoader
from nnunet_topomae.data.selection import PretrainingCases
from nnunet_topomae.trainers.base import TopoMAETrainer
from nnunet_topomae.training.copretraining import CoPretrainingStep
from nnunet_topomae.training.gradients import GradientWatch
from nnunet_topomae.training.plots import PLOT_FILE, plot_terms
from nnunet_topomae.training.probe import PROBE_CASES, plateau, probe_all
from nnunet_topomae.training.progress import describe_terms
from nnunet_topomae.training.record import read_epochs


class MonitoredTrainer(TopoMAETrainer):
    """Pre-training that says where its gradient goes and what its encoders are good for; not trained itself.

    Subclasses set ``step``, and define ``chosen`` and ``build_loader``.
    """

    step: CoPretrainingStep

    @cached_property
    def chosen(self) -> PretrainingCases:
        """What this fold reads."""
        raise NotImplementedError

    def build_loader(self, cases: list[str]) -> CropLocationLoader:
        """Reads images of training cases."""
        raise NotImplementedError

    @cached_property
    def gradients(self) -> GradientWatch:
        """Measures the shares of the loss terms, and adapts the weight of topology where the plan says so."""
        log = self.print_to_log_file if self.local_rank == 0 else str
        return GradientWatch(self.step, self.config, log)

    def records(self) -> list[dict[str, Any]]:
        """Of the epochs that are done, oldest first."""
        return [record for record in read_epochs(Path(self.output_folder)) if record["epoch"] < self.current_epoch]

    def on_train_start(self) -> None:
        """nnU-Net's start, with the adapted weights of the training that continues."""
        super().on_train_start()
        self.gradients.resume(self.records())

    def on_validation_epoch_start(self) -> None:
        """Monitoring; its first batch may be measured."""
        super().on_validation_epoch_start()
        self.gradients.start(self.current_epoch)

    def monitor(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """All terms of a fixed batch of monitoring, with the full weight of L_topo.

        Args:
            batch: with seeds of its masks.
        """
        return self.gradients(
            batch, batch["mask_seeds"], 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
        )

    @cached_property
    def labelled_crops(self) -> list[LabelledCrop]:
        """Fixed crops of a few training cases with their labels, for the probe."""
        cases = spread(self.chosen.labelled, PROBE_CASES)
        folder, ignored = self.preprocessed_dataset_folder, self.label_manager.ignore_label
        loader, labelled = self.build_loader(cases), self.dataset_class(folder, cases)
        crops = []
        for case in cases:
            read = partial(loader.cut, case, loader.image(case))
            segmentation = labelled.load_case(case)[1]
            crops.append(read_labelled_crop(case, segmentation, self.plan.shape.patch_size, ignored, read))
        return [crop for crop in crops if crop is not None]

    def reason_to_end(self) -> str | None:
        """Also where the probe has been on a plateau, if the plan asks for that."""
        return super().reason_to_end() or plateau(self.records(), self.config.pretraining.plateau_probes)

    def write_record(self, epoch: int, seconds: float, terms: Mapping[str, Any]) -> None:
        """The epoch's record, with what was measured, and the plot; the first process of several does it alone."""
        if self.local_rank != 0:
            return
        measured = dict(self.gradients.found)
        if self.config.pretraining.probe_after(epoch + 1):
            encoders = self.gradients.network.eval().trained_encoders
            log, crops = self.print_to_log_file, lambda: self.labelled_crops
            measured |= probe_all(encoders, crops, self.device, seconds, log)
        super().write_record(epoch, seconds, {**terms, **measured})
        self.print_to_log_file(describe_terms(terms))
        plot_terms(read_epochs(Path(self.output_folder)), Path(self.output_folder) / PLOT_FILE)
