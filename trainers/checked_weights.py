"""Where a training's weights come from: nothing that could have seen a validation case gets in unchecked."""

from pathlib import Path
from typing import Any

from torch import nn

from nnunet_topomae.data.patients import Patients
from nnunet_topomae.trainers.endable import EndableTrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.sources import check_origin_of_weights, receive_given_weights


class CheckedWeightsTrainer(EndableTrainer):
    """Trainer that starts only with weights whose origin it knows; not trained itself.

    Weights may come from this training's own checkpoint (`--c`), from `load_initial_weights`, or be fresh.
    """

    # Whether `-pretrained_weights` means something to this trainer, and the file that it names.
    takes_pretrained_weights = False
    given_weights: Path | None = None
    # Whether anybody has loaded weights into the network.
    weights_loaded = False

    def initialize(self) -> None:
        """Build everything, and notice from now on who loads weights."""
        super().initialize()
        unwrap(self.network).register_load_state_dict_post_hook(self._notice_loading)
        receive_given_weights(self)

    def _notice_loading(self, module: nn.Module, incompatible_keys: Any) -> None:
        self.weights_loaded = True

    @property
    def patients(self) -> Patients:
        """Which patient a case belongs to, also one that pre-training has read and that is in no fold."""
        folder = Path(self.preprocessed_dataset_folder_base)
        return Patients.of_dataset(self.config.pretraining.patients, folder, complete=False)

    def load_initial_weights(self) -> None:
        """Load what this trainer starts from; called unless `--c` continues a training."""

    def on_train_start(self) -> None:
        """nnU-Net's start, without weights that nobody could check.

        Raises:
            ValueError: `-pretrained_weights` is given to a trainer that starts from scratch, or somebody has loaded
                weights of which nothing says which cases they have seen.
        """
        if not self.was_initialized:
            self.initialize()
        if self.continued:
            self.print_to_log_file("continuing with the weights of this training's own checkpoint")
        else:
            check_origin_of_weights(self)
            self.load_initial_weights()
        super().on_train_start()
