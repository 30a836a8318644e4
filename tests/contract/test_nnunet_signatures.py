"""Everything of nnU-Net that this package calls or overrides, by name: what would break is told before it breaks."""

import importlib
import inspect
import re
from typing import Any

import pytest

TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
LOADER = "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader"
DATASET = "nnunetv2.training.dataloading.nnunet_dataset:nnUNetBaseDataset"
PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner:ExperimentPlanner"
PLANS = "nnunetv2.utilities.plans_handling.plans_handler:PlansManager"
CONFIGURATION = "nnunetv2.utilities.plans_handling.plans_handler:ConfigurationManager"
LOGGER = "nnunetv2.training.logging.nnunet_logger:MetaLogger"
PLAN_API = "nnunetv2.experiment_planning.plan_and_preprocess_api"
AUGMENTER = "batchgenerators.dataloading.nondet_multi_threaded_augmenter:NonDetMultiThreadedAugmenter"
RUN = "nnunetv2.run.run_training"
SEARCH = "nnunetv2.utilities.find_class_by_name"


def resolve(path: str) -> Any:
    module, _, names = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in names.split("."):
        assert hasattr(value, name), f"nnunetv2 no longer has {path}"
        value = getattr(value, name)
    return value


# What we rely on, the parameters in order (those after them must have defaults), and what breaks without it.
CALLABLES = [
    (f"{TRAINER}.__init__", "self plans configuration fold dataset_json device", "our trainers' constructors"),
    (
        f"{TRAINER}.build_network_architecture",
        "plans_manager configuration_manager num_input_channels num_output_channels enable_deep_supervision",
        "building our networks, in training and in prediction",
    ),
    (f"{TRAINER}.initialize", "self", "seeding the weights"),
    (f"{TRAINER}.configure_optimizers", "self", "optimisers and schedules"),
    (f"{TRAINER}._build_loss", "self", "our losses"),
    (f"{TRAINER}._get_deep_supervision_scales", "self", "deep supervision of UNETR++"),
    (f"{TRAINER}.do_split", "self", "which cases pre-training reads"),
    (f"{TRAINER}.get_dataloaders", "self", "loading crops with their place"),
    (f"{TRAINER}.on_train_start", "self", "loading pre-trained weights"),
    (f"{TRAINER}.on_train_epoch_start", "self", "seeding masks"),
    (f"{TRAINER}.on_train_epoch_end", "self train_outputs", "the record of an epoch"),
    (f"{TRAINER}.on_validation_epoch_start", "self", "fixed validation crops"),
    (f"{TRAINER}.on_validation_epoch_end", "self val_outputs", "the record of an epoch"),
    (f"{TRAINER}.on_epoch_end", "self", "pre-training without Dice, checkpoints"),
    (f"{TRAINER}.train_step", "self batch", "the training step"),
    (f"{TRAINER}.validation_step", "self batch", "monitoring"),
    (f"{TRAINER}.save_checkpoint", "self filename", "checkpoints that describe themselves"),
    (f"{TRAINER}.load_checkpoint", "self filename_or_checkpoint", "continuing a training (passed by position)"),
    (f"{TRAINER}.perform_actual_validation", "self save_probabilities", "validation of pre-training"),
    (f"{TRAINER}.print_to_log_file", "self args", "the training log"),
    (f"{LOADER}.__init__", "self data batch_size patch_size final_patch_size label_manager", "crop loaders"),
    (f"{LOADER}.generate_train_batch", "self", "batches with key points"),
    (f"{DATASET}.__init__", "self folder identifiers", "reading preprocessed cases"),
    (f"{DATASET}.load_case", "self identifier", "reading preprocessed cases"),
    (f"{DATASET}.get_identifiers", "folder", "counting cases"),
    (
        f"{PLANNER}.__init__",
        "self dataset_name_or_id gpu_memory_target_in_gb preprocessor_name plans_name overwrite_target_spacing "
        "suppress_transpose",
        "TopoMAEPlanner",
    ),
    (
        f"{PLANNER}.get_plans_for_configuration",
        "self spacing median_shape data_identifier approximate_n_voxels_dataset _cache",
        "TopoMAEPlanner's `topomae` section",
    ),
    (f"{PLANNER}.generate_data_identifier", "self configuration_name", "the folder of preprocessed cases"),
    (f"{PLANS}.get_configuration", "self configuration_name", "reading plans"),
    (f"{LOGGER}.log", "self key value step", "logging the terms"),
    (f"{LOGGER}.get_value", "self key step", "the record of an epoch"),
    (f"{LOGGER}.get_checkpoint", "self", "checkpoints"),
    (f"{RUN}:load_pretrained_weights", "network fname", "checking the file of `-pretrained_weights`"),
    (
        f"{RUN}:maybe_load_checkpoint",
        "nnunet_trainer continue_training validation_only pretrained_weights_file",
        "checking the file of `-pretrained_weights`",
    ),
    (f"{PLAN_API}:extract_fingerprints", "dataset_ids", "`nnunet-topomae plan`"),
    (f"{PLAN_API}:plan_experiment_dataset", "dataset_id experiment_planner_class", "`nnunet-topomae plan`"),
    (f"{PLAN_API}:preprocess_dataset", "dataset_id plans_identifier configurations", "`nnunet-topomae plan`"),
    (f"{SEARCH}:_recursive_find_python_class", "folder class_name current_module", "the start-up hook"),
    (f"{SEARCH}:recursive_find_python_class", "folder class_name current_module", "the start-up hook"),
    ("nnunetv2.utilities.find_objects:recursive_find_trainer_class_by_name", "trainer_name", "finding our trainers"),
    ("nnunetv2.utilities.default_n_proc_DA:get_allowed_n_proc_DA", "", "the number of loading workers"),
    ("nnunetv2.training.dataloading.nnunet_dataset:infer_dataset_class", "folder", "reading preprocessed cases"),
]


@pytest.mark.parametrize(("path", "expected", "consequence"), CALLABLES, ids=[path for path, *_ in CALLABLES])
def test_signature(path: str, expected: str, consequence: str) -> None:
    parameters = inspect.signature(resolve(path)).parameters
    names = expected.split()
    message = f"{path} is now ({', '.join(parameters)}); this breaks {consequence}"
    if path.endswith(".load_checkpoint"):
        assert len(parameters) == 2, message
    else:
        assert list(parameters)[: len(names)] == names, message
    further = [parameter for name, parameter in parameters.items() if name not in names]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if path.endswith(".load_checkpoint"):
        return
    assert all(item.kind in variable or item.default is not item.empty for item in further), message


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (
            f"{TRAINER}.__init__",
            "configuration_manager configuration_name current_epoch dataset_json device disable_checkpointing "
            "enable_deep_supervision grad_scaler initial_lr is_ddp label_manager local_rank logger my_init_kwargs "
            "num_epochs num_iterations_per_epoch num_val_iterations_per_epoch oversample_foreground_percent "
            "output_folder output_folder_base plans_manager preprocessed_dataset_folder "
            "preprocessed_dataset_folder_base save_every was_initialized weight_decay _best_ema",
        ),
        (f"{TRAINER}.initialize", "network optimizer lr_scheduler loss dataset_class num_input_channels"),
        (f"{LOADER}.__init__", "indices patch_size need_to_pad"),
        (f"{LOGGER}.__init__", "loggers resume"),
        (f"{AUGMENTER}.__init__", "initialized _processes results_loop_thread results_loop_queue abort_event"),
    ],
)
def test_attributes_are_set(function: str, names: str) -> None:
    known = set(resolve(function).__code__.co_names)
    assert not set(names.split()) - known, f"{function} no longer sets what our classes read"


@pytest.mark.parametrize(
    "name", ["patch_size", "pool_op_kernel_sizes", "spacing", "normalization_schemes", "data_identifier", "batch_size"]
)
def test_configuration_manager_has(name: str) -> None:
    assert isinstance(resolve(f"{CONFIGURATION}.{name}"), property)


def test_our_checkpoints_have_the_entries_of_stock_ones() -> None:
    pattern = re.compile(r"""^\s+['"](\w+)['"]: """, re.MULTILINE)
    stock = pattern.findall(inspect.getsource(resolve(f"{TRAINER}.save_checkpoint")))
    ours = pattern.findall(inspect.getsource(resolve("nnunet_topomae.training.checkpoints:training_state")))
    assert len(stock) >= 9, "nnU-Net writes its checkpoints in another way: adapt training_state"
    assert ours == stock


def test_the_walk_goes_through_the_function_that_the_hook_wraps() -> None:
    code = resolve(f"{SEARCH}:recursive_find_python_class").__code__
    assert "_recursive_find_python_class" in code.co_names, "the start-up hook is never asked"


def test_pretrained_weights_are_loaded_through_the_name_that_the_fusion_trainer_wraps() -> None:
    code = resolve(f"{RUN}:maybe_load_checkpoint").__code__
    assert "load_pretrained_weights" in code.co_names, "every training with -pretrained_weights would be refused"


def test_build_network_architecture_is_called_on_the_class() -> None:
    """Prediction builds the network without an instance of the trainer."""
    trainer = resolve(TRAINER)
    assert isinstance(inspect.getattr_static(trainer, "build_network_architecture"), staticmethod)


def test_deep_supervision_keeps_its_weights_in_an_attribute() -> None:
    wrapper = resolve("nnunetv2.training.loss.deep_supervision:DeepSupervisionWrapper")
    assert wrapper(loss=None, weight_factors=(0.5, 0.5)).weight_factors == (0.5, 0.5)
