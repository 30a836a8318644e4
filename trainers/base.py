"""What the trainers of our networks share: the plan's shape, the schedule and the terms of an epoch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch.optim import Optimizer

from nnunet_topomae.architectures.layers import use_channels_last
from nnunet_topomae.architectures.summary import Cost, summary_line
from nnunet_topomae.nnunet.dataset import channel_names
from nnunet_topomae.nnunet.plan import Plan, read_plan
from nnunet_topomae.trainers.checked_weights import CheckedWeightsTrainer
from nnunet_topomae.training.devices import average_terms_of_all_gpus, unwrap
from nnunet_topomae.training.progress import advance, epoch_bar
from nnunet_topomae.training.record import average_terms
from nnunet_topomae.training.schedules import Factor, WarmupSchedule
from nnunet_topomae.training.steps import optimise_or_log


class TopoMAETrainer(CheckedWeightsTrainer):
    """Trainer of a network whose shape follows from the plan; not trained itself."""

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
        self.plan: Plan = read_plan(self.configuration_manager, channels, self.plans_manager.plans, self.config)
        self.initial_lr = self.section.learning_rate
        self.weight_decay = self.section.weight_decay
        self.save_every: int = max(1, min(50, self.num_epochs // 20))
        self.epoch_terms: dict[str, dict[str, float]] = {}
        self.step_of_epoch = 0
        self.bar: Any = None

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of :meth:`build_network`, as nnU-Net's training and prediction ask the class for it."""
        plan = read_plan(configuration_manager, config=cls.read_config(configuration_manager.configuration))
        return cls.build_network(plan, num_input_channels, num_output_channels, enable_deep_supervision)

    @staticmethod
    def build_network(plan: Plan, channels: int, heads: int, deep_supervision: bool) -> nn.Module:
        """The network with its initial weights. Subclasses say which.

        Args:
            plan: shape of the network and settings.
            channels: image channels.
            heads: segmentation heads; pre-trainings have none.
            deep_supervision: whether it returns logits of several scales in training, or full resolution only.
        """
        raise NotImplementedError

    def initialize(self) -> None:
        """Build everything; on a CPU, convolutions take the faster layout of their weights."""
        super().initialize()
        if self.device.type == "cpu":
            use_channels_last(unwrap(self.network))

    def describe_network(self, cost: Cost) -> str:
        """What the rule chose and what the network costs."""
        return summary_line(unwrap(self.network), self.plan.shape, cost)

    def build_schedule(self, optimizer: Optimizer, decay: Factor) -> WarmupSchedule:
        """The plan's warm-up and a decay; logs what is used.

        Args:
            optimizer: its learning rates are the peaks.
            decay: factor of the peaks from the progress after the warm-up, 0 to 1.
        """
        epochs, steps = self.num_epochs, self.num_iterations_per_epoch
        schedule = WarmupSchedule(optimizer, epochs, steps, self.section.warmup_steps, decay)
        self.print_to_log_file(schedule.describe())
        return schedule

    def on_train_epoch_start(self) -> None:
        """nnU-Net's start of an epoch; the steps of the schedule are counted from here."""
        super().on_train_epoch_start()
        self.step_of_epoch = self.first_step
        self.bar = epoch_bar(self.num_iterations_per_epoch, self.current_epoch, self.local_rank == 0)

    def follow_schedule(self) -> None:
        """Set the learning rates of the next step."""
        self.lr_scheduler.step(self.current_epoch, self.step_of_epoch)
        self.step_of_epoch += 1
        advance(self.bar)

    @property
    def clip(self) -> float:
        """Largest gradient norm."""
        return float(self.section.clip)

    def optimise(self, terms: Mapping[str, Tensor], cases: Iterable[str]) -> None:
        """One optimiser step; skipped, counted and logged where loss or gradient is not finite.

        Args:
            terms: of the loss by name, with their sum as ``total``.
            cases: of the batch.
        """
        optimise_or_log(self, terms, self.clip, cases)

    def record_terms(self, part: Literal["train", "validation"], steps: Sequence[Mapping[str, float]]) -> None:
        """Average the terms of an epoch's steps, over all GPUs too.

        Args:
            part: which steps they are.
            steps: terms of every step by name; on several GPUs, those of this one.
        """
        terms = average_terms_of_all_gpus(steps) if self.is_ddp else average_terms(steps)
        self.epoch_terms[part] = terms
        shown = "monitoring" if part == "validation" and self.role == "pretraining" else part
        for name, value in terms.items():
            for logger in self.logger.loggers:
                logger.log(f"{shown}/{name}", value, self.current_epoch)
