"""A training that follows from its seed: interrupted and continued, it is the one that nobody interrupted."""

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_topomae.data.seeding import SeededLoader, derive_seed
from nnunet_topomae.data.workers import start_workers, without_workers
from nnunet_topomae.trainers.planned import PlannedTrainer
from nnunet_topomae.training.checkpoints import OUTPUTS, SEED, STEPS, plain
from nnunet_topomae.training.devices import first_sample, seed_device
from nnunet_topomae.training.outputs import NotedSteps, pack, unpack

# What the seed is for, besides the initial weights.
TRAINING, VALIDATION, NETWORK = 1, 2, 3


class ReproducibleTrainer(PlannedTrainer):
    """What is random in a step follows from the seed and the number of the step; not trained itself."""

    seed: int
    noted: NotedSteps
    # After `--c`: how many steps of the next epoch are done already, and what they have returned.
    resumed_steps: int = 0
    resumed_outputs: Sequence[Any] = ()

    @property
    def first_batch(self) -> int:
        """Number of this process's first training step, counted from the start of the whole training."""
        return int(self.current_epoch * self.section.iterations_per_epoch + self.resumed_steps)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders with its augmentation, whose samples follow from the seed."""
        with without_workers():
            loaders = super().get_dataloaders()
        first = first_sample(self.configuration_manager.batch_size)
        labels = [int(label) for label in (*self.label_manager.all_labels, self.label_manager.ignore_label or 0)]
        training, validation = (
            SeededLoader(augmenter.data_loader, derive_seed(self.seed, purpose), first, labels)
            for augmenter, purpose in zip(loaders, (TRAINING, VALIDATION), strict=True)
        )
        done = self.current_epoch * self.num_val_iterations_per_epoch
        return (
            start_workers(training, self.device, self.first_batch),
            start_workers(validation, self.device, done, share=2),
        )

    def on_train_start(self) -> None:
        """nnU-Net's start; from now on, what the steps return is noted."""
        super().on_train_start()
        self.noted = NotedSteps(self)

    def on_train_epoch_start(self) -> None:
        """nnU-Net's start of an epoch, with the numbers of its log as a checkpoint would give them back.

        Numpy's numbers of 32 bits and Python's of 64 give different moving averages.
        """
        super().on_train_epoch_start()
        self.logger.load_checkpoint(plain(self.logger.get_checkpoint()))

    def seed_network(self, step: int) -> None:
        """Seed what is random in the network, such as dropout, for a step of the current epoch."""
        seed_device(self.device, derive_seed(self.seed, NETWORK, self.current_epoch, step, self.local_rank))

    def progress(self, steps: int) -> dict[str, Any]:
        """What a checkpoint needs for continuing, besides nnU-Net's own entries.

        Args:
            steps: of the next epoch that are done already.
        """
        outputs = pack(self.noted.outputs[:steps]) if steps else []
        return {SEED: self.seed, STEPS: steps, OUTPUTS: outputs}

    def continue_from(self, progress: Mapping[str, Any]) -> None:
        """Go on after the steps that a checkpoint's :meth:`progress` counts, with its seed."""
        if progress.get(SEED, self.seed) != self.seed:
            self.seed = int(progress[SEED])
            self.print_to_log_file(f"continuing with the seed of the checkpoint, {self.seed}")
        self.resumed_outputs = unpack(progress.get(OUTPUTS, ()))
        # Earlier versions did not keep the outputs, and nnU-Net cannot end an epoch without any.
        most = self.section.iterations_per_epoch - (0 if self.resumed_outputs else 1)
        self.resumed_steps = min(progress.get(STEPS, 0), most)
