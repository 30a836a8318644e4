"""Supervised training that starts from the pre-training of the same fold; of which network, its subclasses say."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from nnunet_topomae.config import FinetuningConfig
from nnunet_topomae.trainers.supervised import SupervisedTrainer
from nnunet_topomae.training.checkpoints import FRESH
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.finetuning import prepare_schedule, without_pretraining
from nnunet_topomae.training.pretrained import Target, load_pretraining, plans_decoder
from nnunet_topomae.training.schedules import WarmupSchedule, build_adamw, poly
from nnunet_topomae.training.sources import PretrainingSource
from nnunet_topomae.training.transfer import Parts, transferred_parts


class PretrainedTrainer(SupervisedTrainer):
    """Fine-tunes a network that declares its `pretrained_parts` and `fresh_parts`.

    Starts from the pre-training of the same data set, plans, configuration and fold, from the file that the plan's
    `topomae.finetuning.pretrained` names, or from the file given to `-pretrained_weights`.
    """

    takes_pretrained_weights = True
    # Names of the weights that the transfer has left fresh, where these are others than the plan says.
    left_fresh: tuple[str, ...] | None = None

    @property
    def parts(self) -> Parts:
        """What the network takes over, and what starts fresh, as far as the plan says it."""
        config = self.plan.config
        takes_decoder = self.takes_decoder and plans_decoder(config)
        # nnU-Net reads every attribute for its debug.json, this one in trainings from scratch, too.
        taken = "both" if self.source.from_scratch else config.finetuning.transfer_parts
        return transferred_parts(unwrap(self.network), taken, takes_decoder)

    @property
    def fresh(self) -> tuple[str, ...]:
        """Beginnings of the names of weights that are not pre-trained."""
        return self.parts.fresh if self.left_fresh is None else self.left_fresh

    @property
    def takes_decoder(self) -> bool:
        """Whether a pre-trained decoder comes with its encoder."""
        section: FinetuningConfig = self.plan.config.finetuning
        return section.transfer_decoder != "no"

    @property
    def source(self) -> PretrainingSource:
        """Where this fold's pre-trained weights come from."""
        return PretrainingSource(
            Path(self.output_folder_base).parent,
            self.plans_manager.dataset_name,
            self.plans_manager.plans_name,
            self.configuration_name,
            self.fold,
            self.plan.config.finetuning.pretrained,
            self.given_weights,
            self.plan.config.finetuning.pretrainer,
        )

    def configure_optimizers(self) -> tuple[Optimizer, WarmupSchedule]:
        """AdamW with the plan's schedule of pre-trained weights; fresh ones may learn faster."""
        section = self.plan.config.finetuning
        optimizer = build_adamw(
            unwrap(self.network),
            section.learning_rate,
            section.weight_decay,
            **self.pretrained_groups(section.pretrained_learning_rate),
        )
        return optimizer, self.build_schedule(optimizer, poly)

    def pretrained_groups(self, learning_rate: float) -> dict[str, Any]:
        """What the optimiser must know of pre-trained weights; nothing without any.

        Args:
            learning_rate: their peak.
        """
        section, log = self.plan.config.finetuning, self.print_to_log_file
        if self.source.from_scratch:
            without_pretraining(section, log)
            return {"slow_learning_rate": None}
        paces = prepare_schedule(unwrap(self.network), section, self.fresh, log)
        return {"slow_learning_rate": learning_rate, "fast_prefixes": self.fresh, "paces": paces}

    def learn_as_fresh(self, left_fresh: Collection[str]) -> None:
        """Build the optimiser again if it takes other weights for fresh, as when only a file said what it provides.

        Args:
            left_fresh: names of the weights that the transfer has left fresh.
        """
        names, expected = [name for name, _ in unwrap(self.network).named_parameters()], self.fresh
        fresh = tuple(name for name in names if name in left_fresh)
        if fresh != tuple(name for name in names if name.startswith(expected)):
            self.left_fresh = fresh
            self.print_to_log_file(f"{len(fresh)} tensors start fresh, other ones than the plan says. With these:")
            self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def progress(self, steps: int) -> dict[str, Any]:
        """What a checkpoint needs for continuing; also which weights started fresh, where the plan does not say it."""
        progress: dict[str, Any] = super().progress(steps)
        return progress if self.left_fresh is None else {**progress, FRESH: list(self.left_fresh)}

    def continue_from(self, progress: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, with the learning rates of its training."""
        super().continue_from(progress)
        if FRESH in progress:
            self.learn_as_fresh(progress[FRESH])

    def load_initial_weights(self) -> None:
        """Load the pre-trained weights, unless the plan asks for training from scratch."""
        if self.source.from_scratch:
            self.print_to_log_file("training from scratch, as topomae.finetuning.pretrained says")
        else:
            self.load_pretraining(self.source.require())

    def load_pretraining(self, file: Path) -> None:
        """Transfer the weights of a checkpoint that may be used here, and record what became of each."""
        target = Target(
            unwrap(self.network),
            self.plan,
            self.num_input_channels,
            self.plans_manager.dataset_name,
            self.validation_images(),
            self.patients,
            self.takes_decoder,
        )
        result, source = load_pretraining(file, target, self.print_to_log_file)
        if self.local_rank == 0:
            result.write(Path(self.output_folder) / "transfer.json", source)
        self.learn_as_fresh(result.missing)
