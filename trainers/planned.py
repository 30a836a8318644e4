"""A training that the plan's `topomae` section schedules, and that says in its files what it was."""

import secrets
from pathlib import Path
from typing import Any, Literal

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_topomae.architectures.summary import Cost, measure_cost
from nnunet_topomae.config import FinetuningConfig, PretrainingConfig, TopoMAEConfig
from nnunet_topomae.data.cases import ImagesRead, check_fold, check_patients, check_preprocessed, hash_images
from nnunet_topomae.data.patients import Patients
from nnunet_topomae.data.sources import hash_sources
from nnunet_topomae.nnunet.names import SPLITS_FILE
from nnunet_topomae.nnunet.plan import check_names, check_network
from nnunet_topomae.nnunet.plan_checks import check_splits, check_training
from nnunet_topomae.training.checks import check_no_copies
from nnunet_topomae.training.devices import (
    decided_by_first,
    keep_to_thread_limit,
    own_device,
    parallel_on_own_device,
    unwrap,
)
from nnunet_topomae.training.failures import (
    preprocessed_files_are_there,
    results_can_be_written,
    show_expected_failures_in_one_line,
)
from nnunet_topomae.training.monitors import add_tensorboard
from nnunet_topomae.training.record import add_facts
from nnunet_topomae.training.skipping import SkippedSteps


class PlannedTrainer(nnUNetTrainer):
    """nnU-Net trainer with the plan's budget and seed; not trained itself.

    It lists the images that it has read; `training.json` is for reports. The parameters' names are
    nnU-Net's, which reads them from the signature and stores them in checkpoints.
    """

    role: Literal["pretraining", "finetuning"]

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        show_expected_failures_in_one_line()
        file = check_training(plans, configuration, dataset_json)
        with results_can_be_written():
            super().__init__(plans, configuration, fold, dataset_json, device)
        add_tensorboard(self)
        if self.is_ddp:
            self.device = own_device(device)
            if self.device.type != "cuda":
                self.grad_scaler = None
        keep_to_thread_limit(self.device)
        self.config = self.read_config(self.configuration_manager.configuration)
        check_names(self.plans_manager, self.configuration_manager, file)
        if self.trains_plans_network:
            check_network(self.configuration_manager, file)
        section = self.section
        self.num_epochs = section.epochs
        self.num_iterations_per_epoch = section.iterations_per_epoch
        self.num_val_iterations_per_epoch = section.validation_iterations
        self.seed: int = secrets.randbits(32) if section.seed is None else section.seed
        self.images_read, self.skipped = ImagesRead(), SkippedSteps()

    @staticmethod
    def read_config(configuration: dict[str, Any]) -> TopoMAEConfig:
        """What this training takes from the configuration of a plan."""
        return TopoMAEConfig.from_configuration(configuration)

    @property
    def trains_plans_network(self) -> bool:
        """Whether the network that the plan describes is built, not only its strides used."""
        return self.config.architecture.partner == "plan"

    @property
    def section(self) -> PretrainingConfig | FinetuningConfig:
        """The part of the `topomae` section that schedules this training."""
        return getattr(self.config, self.role)  # type: ignore[no-any-return]

    def initialize(self) -> None:
        """Build network, optimiser and loss with seeded weights, and record the sizes."""
        names = self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name
        check_preprocessed(Path(self.preprocessed_dataset_folder), *names)
        self.seed = decided_by_first(self.seed)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            with parallel_on_own_device():
                super().initialize()
        if self.local_rank == 0:
            cost = measure_cost(unwrap(self.network), self.num_input_channels, self.configuration_manager.patch_size)
            steps = self.num_epochs * self.num_iterations_per_epoch
            work = {"steps": steps, "crops_per_step": self.configuration_manager.batch_size}
            add_facts(Path(self.output_folder), {"parameters": cost.parameters, "macs": float(cost.macs), **work})
            self.print_to_log_file(f"{self.describe_network(cost)}; seed {self.seed}")

    def describe_network(self, cost: Cost) -> str:
        """One line for the log."""
        return f"{type(unwrap(self.network)).__name__}: {cost}"

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split; an error where the fold was not made, or where a patient is known to be on both sides."""
        folder = Path(self.preprocessed_dataset_folder_base)
        cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        check_fold(cases, self.fold, folder / SPLITS_FILE)
        check_splits(folder / SPLITS_FILE, self.fold, cases)
        training, validation = ([str(case) for case in part] for part in super().do_split())
        if self.fold != "all":
            patients = Patients.of_dataset(self.config.pretraining.patients, folder)
            check_patients(training, validation, patients, folder / SPLITS_FILE)
        return training, validation

    def record_images(self) -> ImagesRead:
        """Hash the images that this training reads, and list them in the fold's folder.

        Returns:
            All that it has ever read, the part before `--c` included.
        """
        raise NotImplementedError

    def validation_images(self) -> ImagesRead:
        """Hashes of the fold's validation cases; none where it validates on its training cases, as fold `all` does."""
        training, validation = self.do_split()
        cases = [] if self.fold == "all" or set(training) == set(validation) else validation
        folder = Path(self.preprocessed_dataset_folder)
        return ImagesRead(hash_images(folder, cases), sources=hash_sources(folder.parent, cases))

    def on_train_start(self) -> None:
        """nnU-Net's start, after listing the images that will be read; copies of validation cases are refused."""
        if not self.was_initialized:
            self.initialize()
        if self.local_rank == 0:
            self.images_read = self.record_images()
            check_no_copies(self.images_read, self.validation_images(), "this training")
        with preprocessed_files_are_there():
            super().on_train_start()
