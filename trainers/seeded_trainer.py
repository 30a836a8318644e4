"""Stock nnU-Net with a seed, a budget and a fraction of the labels, as a baseline of a benchmark."""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.architectures.summary import cost_line
from nnunet_topomae.config import TopoMAEConfig
from nnunet_topomae.data.fractions import choose_fraction, labels_present
from nnunet_topomae.geometry import as_size3
from nnunet_topomae.training.devices import log_gpu_memory, unwrap


class SeededNNUNetTrainer(nnUNetTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr SeededNNUNetTrainer [-p PLANS]`.

    Network, optimiser, loss and augmentation are nnU-Net's. The plan's `topomae.finetuning` says for how many epochs
    and iterations, from which initial weights, and on which fraction of the training cases; its defaults are nnU-Net's.
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.section = TopoMAEConfig.from_configuration(self.configuration_manager.configuration).finetuning
        self.num_epochs = self.section.epochs
        self.num_iterations_per_epoch = self.section.iterations_per_epoch
        self.num_val_iterations_per_epoch = self.section.validation_iterations

    def initialize(self) -> None:
        """Build everything, with seeded weights where the plan has a seed."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            if self.section.seed is not None:
                torch.manual_seed(self.section.seed)
            super().initialize()
        size = self.configuration_manager.patch_size
        if len(size) == 3:
            cost = cost_line(unwrap(self.network), (self.num_input_channels, *as_size3(size, "patch_size")))
            self.print_to_log_file(f"{type(unwrap(self.network)).__name__}: {cost}; seed {self.section.seed}")

    def on_train_end(self) -> None:
        """Log the memory that training took."""
        super().on_train_end()
        log_gpu_memory(self)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split with the plan's fraction of the training cases."""
        training, validation = super().do_split()
        if self.section.label_fraction < 1:
            dataset = self.dataset_class(self.preprocessed_dataset_folder, list(training))
            present = labels_present(dataset, list(training))
            training = choose_fraction(present, self.section.label_fraction, self.section.label_seed)
            self.print_to_log_file(f"training on {len(training)} of {len(present)} labelled cases")
        return list(training), list(validation)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's augmentation with the plan's mirror axes."""
        *augmentation, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        chosen = self.section.mirror_axes
        self.inference_allowed_mirroring_axes = mirror_axes if chosen is None else (chosen or None)
        return (*augmentation, self.inference_allowed_mirroring_axes)
