"""Masked co-pre-training of a ViT and its partner on the images of a fold's training cases (paper Sec. II)."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from torch import nn
from torch.optim import Optimizer

from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.data.loaders import CropLocationLoader, build_pretraining_loader
from nnunet_topomae.data.seeding import derive_seed
from nnunet_topomae.data.selection import JointDataset, PretrainingCases, choose_cases
from nnunet_topomae.data.spatial_task import report_spatial_task
from nnunet_topomae.data.workers import start_workers
from nnunet_topomae.losses.copretraining import CoPretrainingLoss, build_topological_loss
from nnunet_topomae.nnunet.names import LATEST_CHECKPOINT
from nnunet_topomae.nnunet.plan import Plan
from nnunet_topomae.trainers.monitored import MonitoredTrainer
from nnunet_topomae.trainers.reproducible import TRAINING
from nnunet_topomae.training.checkpoints import ignore_former_parts
from nnunet_topomae.training.copretraining import CoPretrainingStep, detach_terms, warn_of_long_warmup
from nnunet_topomae.training.devices import first_sample, processes_of_this_machine, unwrap
from nnunet_topomae.training.networks import pretraining_network
from nnunet_topomae.training.schedules import WarmupSchedule, build_pretraining_adamw, cosine
from nnunet_topomae.training.start import start_training, with_start
from nnunet_topomae.training.steps import autocast
from nnunet_topomae.training.validation import PREVIEW_CASES, rebuild_crops


class TopoMAEPretrainer(MonitoredTrainer):
    """`nnUNetv2_train DATASET CONFIGURATION FOLD -tr TopoMAEPretrainer [-p PLANS] [-pretrained_weights FILE]`.

    Reads the fold's training cases and unlabelled images; validation patients stay unseen, labels unused.
    """

    role = "pretraining"
    takes_pretrained_weights = True

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """ViT-MAE and its partner, rebuilding the image. Labels do not matter."""
        return pretraining_network(plan, channels)

    def initialize(self) -> None:
        """Build everything a training step needs; labels choose neither crops nor checkpoints."""
        self.enable_deep_supervision = False
        self.oversample_foreground_percent = 0.0
        super().initialize()
        ignore_former_parts(unwrap(self.network))
        log = self.print_to_log_file
        topology = build_topological_loss(self.plan.config.topology, processes_of_this_machine(), log)
        self.step = CoPretrainingStep(self.network, self.loss, topology, self.plan, self.device, log)
        warn_of_long_warmup(self.config.topology, self.num_epochs, log)

    def _build_loss(self) -> CoPretrainingLoss:
        return CoPretrainingLoss(self.config.pretraining, self.config.topology, self.config.architecture.has_vit)

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW with linear warm-up and cosine decay."""
        optimizer = build_pretraining_adamw(unwrap(self.network), self.plan.config.pretraining)
        return optimizer, self.build_schedule(optimizer, cosine)

    @cached_property
    def chosen(self) -> PretrainingCases:
        """What this fold reads; logged when it is chosen."""
        folder, section = Path(self.preprocessed_dataset_folder), self.plan.config.pretraining
        chosen = choose_cases(self.do_split(), folder, self.plans_manager.plans, self.configuration_name, section)
        self.print_to_log_file(chosen)
        return chosen

    def load_initial_weights(self) -> None:
        """Load what the pre-training starts from, if it is given something."""
        start_training(self)

    def record_images(self) -> ImagesRead:
        """Hash and list training cases and unlabelled images, and those that the given weights have seen."""
        return with_start(self.chosen.record(Path(self.output_folder), self.continued), Path(self.output_folder))

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Random crops of training cases and unlabelled images; monitoring repeats crops of training cases."""
        cases, seed = list(self.chosen.labelled), derive_seed(self.seed, TRAINING)
        self.training_loader = self.build_loader(cases, seed, self.chosen.unlabelled)
        self.validation_loader = self.build_loader(cases)
        training = start_workers(self.training_loader, self.device, self.first_batch)
        return training, SingleThreadedAugmenter(self.validation_loader, None)

    def build_loader(
        self, cases: list[str], seed: int | None = None, unlabelled: Iterable[str] = ()
    ) -> CropLocationLoader:
        """Crops with key points and target topology; without a seed, the fixed crops of monitoring."""
        dataset = JointDataset(self.dataset_class(self.preprocessed_dataset_folder, cases), unlabelled)
        first = first_sample(self.configuration_manager.batch_size)
        return build_pretraining_loader(dataset, self.batch_size, self.plan, self.label_manager, seed, first)

    def on_train_epoch_start(self) -> None:
        """Before the first epoch, say what the spatial task can learn."""
        super().on_train_epoch_start()
        if self.current_epoch == 0 and self.local_rank == 0:
            report_spatial_task(self.training_loader, self.plan, Path(self.output_folder), self.print_to_log_file)

    def train_step(self, batch: dict[str, Any]) -> dict[str, float]:
        """One step of both networks; returns every term."""
        self.follow_schedule()
        with autocast(self.device):
            terms = self.step(batch, batch["mask_seeds"], self.config.topology.training_factor(self.current_epoch))
        self.optimise(terms, batch["keys"])
        return detach_terms(terms)

    def on_train_epoch_end(self, train_outputs: list[dict[str, float]]) -> None:
        """Average the terms of the epoch."""
        self.record_terms("train", train_outputs)
        self.logger.log("train_losses", self.epoch_terms["train"]["total"], self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Monitoring, which nnU-Net calls validation: back to the fixed crops and masks of training cases."""
        super().on_validation_epoch_start()
        self.validation_loader.reset()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, float]:
        """All terms of one fixed batch, with the full weight of L_topo."""
        with autocast(self.device):
            return detach_terms(self.monitor(batch))

    def on_validation_epoch_end(self, val_outputs: list[dict[str, float]]) -> None:
        """Average the terms of the fixed batches."""
        self.record_terms("validation", val_outputs)
        self.logger.log("val_losses", self.epoch_terms["validation"]["total"], self.current_epoch)

    def on_epoch_end(self) -> None:
        """Write the record, sometimes previews and the latest checkpoint. No checkpoint is chosen by its loss."""
        seconds = self.epoch_seconds
        self.logger.log("epoch_end_timestamps", time(), self.current_epoch)
        self.write_record(self.current_epoch, seconds, self.epoch_terms)
        done, folder = self.current_epoch + 1, Path(self.output_folder)
        if done % self.save_every == 0 and done < self.num_epochs:
            self.save_checkpoint(str(folder / LATEST_CHECKPOINT))
        if self.plan.config.pretraining.previews_after(done):
            rebuild_crops(self, sorted(self.chosen.labelled)[:PREVIEW_CASES], folder / "monitoring" / f"epoch_{done}")
        self.current_epoch += 1

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Rebuild fixed crops of the training cases: metrics in ``summary.json``, pictures in ``previews``."""
        rebuild_crops(self, sorted(self.do_split()[0]), Path(self.output_folder) / "validation")
