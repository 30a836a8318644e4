"""What all our trainers share: the plan's `topomae` section, self-describing checkpoints and the record of epochs."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.architectures.summary import summary_line
from nnunet_topomae.config import FinetuningConfig, PretrainingConfig
from nnunet_topomae.data.cases import check_enough_cases
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.plan import Plan, read_plan
from nnunet_topomae.trainers.checked_weights import CheckedWeightsTrainer
from nnunet_topomae.training.checkpoints import ENTRY, describe, make_manifest, save_atomically, training_state
from nnunet_topomae.training.devices import average_terms_of_all_gpus, log_gpu_memory, unwrap
from nnunet_topomae.training.plots import PLOT_FILE, plot_terms
from nnunet_topomae.training.record import average_terms, write_epoch
from nnunet_topomae.training.schedules import Factor, WarmupSchedule


class TopoMAETrainer(CheckedWeightsTrainer):
    """nnU-Net trainer configured by the plan's `topomae` section; not trained itself.

    The parameters' names are nnU-Net's, which reads them from the signature and stores them in checkpoints.
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
        super().__init__(plans, configuration, fold, dataset_json, device)
        channels = len(channel_names(dataset_json))
        self.plan: Plan = read_plan(self.configuration_manager, channels, self.plans_manager.plans)
        section = self.section
        self.initial_lr = section.learning_rate
        self.weight_decay = section.weight_decay
        self.num_epochs = section.epochs
        self.num_iterations_per_epoch = section.iterations_per_epoch
        self.num_val_iterations_per_epoch = section.validation_iterations
        self.save_every: int = max(1, min(50, section.epochs // 20))
        self.seed = secrets.randbits(32) if section.seed is None else section.seed
        self.images_read: dict[str, dict[str, str]] = {"cases": {}, "unlabeled": {}}
        self.epoch_terms: dict[str, dict[str, float]] = {}
        self.step_of_epoch = 0

    @property
    def section(self) -> PretrainingConfig | FinetuningConfig:
        """The part of the `topomae` section that schedules this training."""
        return getattr(self.plan.config, self.role)  # type: ignore[no-any-return]

    def initialize(self) -> None:
        """Build network, optimiser and loss with seeded weights, and log the sizes."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(self.seed)
            super().initialize()
        if self.device.type == "cpu":
            use_channels_last(unwrap(self.network))
        summary = summary_line(unwrap(self.network), self.plan.shape, self.num_input_channels)
        self.print_to_log_file(f"{summary}; seed {self.seed}")

    def build_schedule(self, optimizer: Optimizer, decay: Factor) -> WarmupSchedule:
        """The plan's warm-up and a decay; logs what is used."""
        epochs, steps = self.num_epochs, self.num_iterations_per_epoch
        schedule = WarmupSchedule(optimizer, epochs, steps, self.section.warmup_steps, decay)
        self.print_to_log_file(schedule.describe())
        return schedule

    def on_train_epoch_start(self) -> None:
        """nnU-Net's start of an epoch; the steps of the schedule are counted from here."""
        super().on_train_epoch_start()
        self.step_of_epoch = 0

    def follow_schedule(self) -> None:
        """Set the learning rates of the next step."""
        self.lr_scheduler.step(self.current_epoch, self.step_of_epoch)
        self.step_of_epoch += 1

    def on_train_end(self) -> None:
        """Log the memory that training took."""
        super().on_train_end()
        log_gpu_memory(self)

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, with a clear error where five folds cannot be made."""
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        cases = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        check_enough_cases(cases, self.fold, splits)
        training, validation = super().do_split()
        return [str(case) for case in training], [str(case) for case in validation]

    def save_checkpoint(self, filename: str) -> None:
        """Write a stock nnU-Net checkpoint plus the entry that describes it; never half of it."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        manifest = {**make_manifest(self), **self.images_read}
        save_atomically({**training_state(self), ENTRY: describe(self.role, self.plan, manifest)}, filename)

    def record_terms(self, part: Literal["train", "validation"], steps: Sequence[Mapping[str, float]]) -> None:
        """Average the terms of an epoch's steps, over all GPUs too."""
        terms = average_terms_of_all_gpus(steps) if self.is_ddp else average_terms(steps)
        self.epoch_terms[part] = terms
        for name, value in terms.items():
            for logger in self.logger.loggers:
                logger.log(f"{part}/{name}", value, self.current_epoch)

    def write_record(self, epoch: int) -> None:
        """Add the epoch to ``metrics.jsonl``."""
        if self.local_rank != 0:
            return
        times = [self.logger.get_value(f"epoch_{end}_timestamps", step=epoch) for end in ("start", "end")]
        record = {
            "epoch": epoch,
            "seconds": times[1] - times[0],
            "learning_rate": self.logger.get_value("lrs", step=epoch),
            **self.epoch_terms,
        }
        records = write_epoch(Path(self.output_folder), record)
        if self.role == "pretraining":
            plot_terms(records, Path(self.output_folder) / PLOT_FILE)
