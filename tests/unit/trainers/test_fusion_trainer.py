"""Which weights the fusion trainer takes, through nnU-Net's own functions, on a data set without a single voxel."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, distributed, nn

from nnunet_topomae.architectures.unetrpp import DEEP_SUPERVISION_WEIGHTS, deep_supervision_scales
from nnunet_topomae.data.cases import ImagesRead, hash_images
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.trainers.fusion_trainer import TopoMAEFusionTrainer
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.trainers.unetr_trainer import UNETRTrainer
from nnunet_topomae.trainers.unetrpp_trainer import UNETRPPTrainer
from nnunet_topomae.trainers.vectorpose_pretrainer import VectorPOSEPretrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.loading import UntrustedCheckpointError
from nnunet_topomae.training.transfer import without_aliases

pytestmark = pytest.mark.usefixtures("uncounted_macs")

DATASET = "Dataset007_Tiny"
CASES = [f"c{number}" for number in range(5)]
SPLITS = [{"train": [case for case in CASES if case != left_out], "val": [left_out]} for left_out in CASES]
DESCRIPTION = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
STATISTICS = {"percentile_00_5": -57.0, "percentile_99_5": 164.0, "mean": 50.25, "std": 40.5}
SLOW, FAST = 1e-4, 3e-4


def _plans(**finetuning: Any) -> dict[str, Any]:
    """The data set's plans, with a section of ours."""
    plans: dict[str, Any] = json.loads((nnunet_folder("nnUNet_preprocessed") / DATASET / "Plans.json").read_text())
    plans["configurations"]["3d_fullres"]["topomae"] = {
        "architecture": {"vit": "tiny", "dims": [8, 8, 16, 16], "depth": 1},
        "pretraining": {"seed": 1},
        "finetuning": {"seed": 1, "pretrained_learning_rate": SLOW, "learning_rate": FAST, **finetuning},
    }
    return plans


@pytest.fixture(autouse=True)
def _dataset(nnunet_env: Any, tiny_plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five preprocessed cases, of which nothing but the names is read; training itself does not start."""
    folder = nnunet_env.preprocessed / DATASET
    (folder / "Plans_3d_fullres").mkdir(parents=True)
    (folder / "splits_final.json").write_text(json.dumps(SPLITS))
    plans = tiny_plans(DATASET, normalization_schemes=["CTNormalization"])
    plans["foreground_intensity_properties_per_channel"] = {"0": STATISTICS}
    (folder / "Plans.json").write_text(json.dumps(plans))
    for case in CASES:
        (folder / "Plans_3d_fullres" / f"{case}.b2nd").write_bytes(case.encode())
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)


class Pretrained(NamedTuple):
    """The pre-training of fold 0.

    Attributes:
        file: its checkpoint.
        weights: of the network.
    """

    file: Path
    weights: dict[str, Tensor]


@pytest.fixture(scope="module")
def written() -> dict[str, bytes]:
    """Files of the pre-training, written once."""
    return {}


@pytest.fixture
def pretrained(_dataset: None, written: dict[str, bytes]) -> Pretrained:
    trainer = TopoMAEPretrainer(_plans(), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
    folder = Path(trainer.output_folder)
    if not written:
        trainer.initialize()
        with torch.no_grad():
            for parameter in trainer.network.parameters():
                parameter.add_(torch.rand_like(parameter))
        trainer.images_read = ImagesRead(dict.fromkeys(SPLITS[0]["train"], "hash"))
        trainer.save_checkpoint(str(folder / "checkpoint_final.pth"))
        written.update({file.name: file.read_bytes() for file in folder.iterdir()})
    for name, content in written.items():
        (folder / name).write_bytes(content)
    file = folder / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    return Pretrained(file, weights)


def _change(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    checkpoint = torch.load(file, weights_only=False)
    change(checkpoint)
    other = file.with_name("changed.pth")
    torch.save(checkpoint, other)
    return other


def _trainer(
    fold: int | str = 0,
    kind: type[TopoMAEFusionTrainer] = TopoMAEFusionTrainer,
    plans: dict[str, Any] | None = None,
    **finetuning: Any,
) -> TopoMAEFusionTrainer:
    values = deepcopy(plans) if plans else _plans(**finetuning)
    trainer = kind(values, "3d_fullres", fold, DESCRIPTION, torch.device("cpu"))
    trainer.initialize()
    return trainer


def _give(trainer: TopoMAEFusionTrainer, file: Path) -> None:
    """What `nnUNetv2_train ... -pretrained_weights FILE` does before and at the start of training."""
    run_training.maybe_load_checkpoint(trainer, False, False, str(file))
    trainer.on_train_start()


def _rates(trainer: TopoMAEFusionTrainer) -> dict[str, float]:
    """Learning rate by the name of the parameter."""
    rate = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in unwrap(trainer.network).named_parameters()}


def _written(trainer: TopoMAEFusionTrainer) -> dict[str, Any]:
    return dict(json.loads((Path(trainer.output_folder) / "transfer.json").read_text()))


def test_given_weights_are_those_of_the_plans_own_file_and_counted_alike(
    pretrained: Pretrained, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _trainer()
    found.on_train_start()
    written = _written(found)
    given = _trainer(pretrained=str(pretrained.file.with_name("another.pth")))
    _give(given, pretrained.file)
    assert _written(given) == written
    assert all(map(torch.equal, given.network.state_dict().values(), found.network.state_dict().values()))
    assert written["counts"]["matched"] == sum(what == "copied" for what in written["weights"].values()) > 100
    assert written["counts"]["missing"] == sum(what == "fresh" for what in written["weights"].values()) > 0
    assert written["counts"]["unexpected"] == len(written["unexpected"]) > 0
    assert written["source"]["file"] == str(pretrained.file) and written["source"]["fold"] == 0
    assert capsys.readouterr().out.count(f"pre-trained weights from {pretrained.file}: ") == 2


@pytest.mark.parametrize("kind", [TopoMAEFusionTrainer, UNETRTrainer])
def test_given_weights_that_have_seen_a_validation_case_are_refused(
    pretrained: Pretrained, kind: type[TopoMAEFusionTrainer]
) -> None:
    trainer = _trainer(1, kind)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match=r"1 validation cases of this fold.*\(c1\)"):
        _give(trainer, pretrained.file)
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_other_scans_of_a_validation_patient_are_refused_where_the_converters_table_knows_them(
    pretrained: Pretrained, nnunet_env: Any
) -> None:
    def add(checkpoint: dict[str, Any]) -> None:
        checkpoint["topomae"]["manifest"]["unlabeled"] |= {"second scan": "hash", "of nobody": "hash"}

    file, table = _change(pretrained.file, add), nnunet_env.preprocessed / DATASET / "patients.json"
    table.write_text(json.dumps({case: case for case in CASES}))
    _give(_trainer(), file)
    table.write_text(json.dumps({**{case: case for case in CASES}, "second scan": "c0"}))
    with pytest.raises(ValueError, match=r"or other scans of their patients \(second scan\)"):
        _give(_trainer(), file)
    beginning = TopoMAEPretrainer(_plans(), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
    beginning.initialize()
    beginning.given_weights = file
    with pytest.raises(ValueError, match=r"or other scans of their patients \(second scan\)"):
        beginning.on_train_start()


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dataset", [DATASET, "Dataset008_Other"])
def test_renamed_copies_of_validation_cases_are_refused_by_content(
    pretrained: Pretrained, nnunet_env: Any, given: bool, dataset: str
) -> None:
    """Also of another data set, which the plan allows: the pre-training of another fold with all names changed."""
    images = nnunet_env.preprocessed / DATASET / "Plans_3d_fullres"

    def rename(checkpoint: dict[str, Any]) -> None:
        manifest = checkpoint["topomae"]["manifest"]
        manifest["dataset"] = dataset
        manifest["cases"] = {f"renamed_{case}": digest for case, digest in hash_images(images, CASES[1:]).items()}

    file = _change(pretrained.file, rename)
    options = {"allow_other_dataset": True} | ({} if given else {"pretrained": str(file)})
    start: Callable[[Any], None] = (lambda t: _give(t, file)) if given else (lambda t: t.on_train_start())
    with pytest.raises(ValueError, match=r"the pre-training of .*changed.pth reads .*\(renamed_c1 is c1; same content"):
        start(_trainer(1, **options))
    start(_trainer(0, **options))


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, UNETRPPTrainer])
def test_a_copy_of_a_validation_case_among_the_training_cases_is_refused(
    nnunet_env: Any, kind: type[TopoMAEPretrainer] | type[UNETRPPTrainer]
) -> None:
    folder = nnunet_env.preprocessed / DATASET
    (folder / "Plans_3d_fullres" / "copy.b2nd").write_bytes(b"c0")
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["c1", "copy"], "val": ["c0"]}]))
    trainer = kind(_plans(), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"this training reads images of validation cases .*\(copy is c0"):
        trainer.on_train_start()


def test_fold_all_takes_any_fold(pretrained: Pretrained) -> None:
    trainer = _trainer("all")
    _give(trainer, pretrained.file)
    assert _written(trainer)["source"]["fold"] == 0


def _wrap_nothing(network: nn.Module) -> nn.Module:
    return network


def _wrap_compiled(network: nn.Module) -> nn.Module:
    return torch.compile(network, backend="eager")  # type: ignore[return-value]


def _wrap_parallel(network: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network)


def _wrap_both(network: nn.Module) -> nn.Module:
    return _wrap_parallel(_wrap_compiled(network))


@pytest.mark.parametrize(
    "wrap",
    [
        _wrap_nothing,
        pytest.param(_wrap_compiled, marks=pytest.mark.slow),
        pytest.param(_wrap_parallel, marks=pytest.mark.slow),
        _wrap_both,
    ],
)
def test_wrapped_networks_are_checked_and_loaded(
    pretrained: Pretrained, wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    plain = {fold: _trainer(fold) for fold in (0, 1)}
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        for trainer in plain.values():
            trainer.network = wrap(trainer.network)
        with pytest.raises(ValueError, match="validation cases of this fold"):
            _give(plain[1], pretrained.file)
        _give(plain[0], pretrained.file)
    finally:
        distributed.destroy_process_group()
    own = unwrap(plain[0].network).state_dict()
    copied = [name for name, what in _written(plain[0])["weights"].items() if what == "copied"]
    assert len(copied) > 100 and all(torch.equal(own[name], pretrained.weights[name]) for name in copied)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [_wrap_nothing, _wrap_compiled, _wrap_parallel, _wrap_both])
@pytest.mark.parametrize("kind", [TopoMAEFusionTrainer, UNETRTrainer])
def test_fresh_parts_keep_their_learning_rate_in_wrapped_networks(
    kind: type[TopoMAEFusionTrainer], wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """nnU-Net compiles the network before it asks for the optimiser, which puts a prefix before every name."""
    trainer = _trainer(kind=kind)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        trainer.network = wrap(trainer.network)
        trainer.optimizer, schedule = trainer.configure_optimizers()
    finally:
        distributed.destroy_process_group()
    rates = _rates(trainer)
    assert rates == {name: FAST if name.startswith(trainer.parts.fresh) else SLOW for name in rates}
    assert FAST in rates.values() and SLOW in rates.values()
    weights = sum(
        p.numel() for name, p in unwrap(trainer.network).named_parameters() if rates[name] == FAST and p.ndim > 1
    )
    assert f"{FAST:g} for {weights} weights" in schedule.describe()


def test_deep_supervision_is_unetrpps(_dataset: None) -> None:
    """Nothing wraps the loss: nnU-Net's weights would leave the coarsest output out."""
    trainer = _trainer(pretrained="scratch")
    assert tuple(trainer.loss.weight_factors) == DEEP_SUPERVISION_WEIGHTS
    assert trainer._get_deep_supervision_scales() == deep_supervision_scales(trainer.plan.shape)


@pytest.mark.slow
def test_given_weights_of_another_plan_or_data_set_are_refused_or_adapted(pretrained: Pretrained) -> None:
    plans = _plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]
    with pytest.raises(ValueError, match=r"another plan \(patch_size.*finetuning.transfer=resample"):
        _give(_trainer(plans=plans), pretrained.file)
    plans["configurations"]["3d_fullres"]["topomae"]["finetuning"]["transfer"] = "resample"
    trainer = _trainer(plans=plans)
    _give(trainer, pretrained.file)
    assert _written(trainer)["counts"]["resampled"] > 0

    def rename(checkpoint: dict[str, Any]) -> None:
        checkpoint["topomae"]["manifest"]["dataset"] = "Dataset008_Other"

    other = _change(pretrained.file, rename)
    for transfer in ("same_plan", "resample"):
        with pytest.raises(ValueError, match=r"Dataset008_Other.*Dataset007_Tiny.*finetuning.allow_other_dataset=true"):
            _give(_trainer(transfer=transfer), other)
        with pytest.raises(ValueError, match=r"finetuning.allow_other_dataset=true"):
            _trainer(transfer=transfer, pretrained=str(other)).on_train_start()
        allowed = _trainer(1, transfer=transfer, allow_other_dataset=True)
        _give(allowed, other)
        assert _written(allowed)["source"]["dataset"] == "Dataset008_Other"


def test_other_intensities_are_another_plan_to_which_nothing_is_adapted(pretrained: Pretrained) -> None:
    plans = _plans()
    plans["foreground_intensity_properties_per_channel"]["0"] = {**STATISTICS, "mean": 50.25 + 1e-9, "min": -900.0}
    _give(_trainer(plans=plans), pretrained.file)
    plans["foreground_intensity_properties_per_channel"]["0"] = {**STATISTICS, "percentile_99_5": 250.0}
    with pytest.raises(ValueError, match=r"another plan \(intensities: .*164\.0.*250\.0") as error:
        _give(_trainer(plans=plans), pretrained.file)
    assert "transfer=resample" not in str(error.value)  # would not help
    plans["configurations"]["3d_fullres"]["topomae"]["finetuning"]["transfer"] = "resample"
    with pytest.raises(ValueError, match=r"normalised in another way \(intensities: .*164\.0.*250\.0.*move_plans"):
        _give(_trainer(plans=plans), pretrained.file)
    plans["foreground_intensity_properties_per_channel"]["0"] = STATISTICS
    _give(_trainer(plans=plans), pretrained.file)


def test_a_checkpoint_of_an_earlier_version_is_taken_and_what_it_does_not_say_is_said(
    pretrained: Pretrained, capsys: pytest.CaptureFixture[str]
) -> None:
    def forget(checkpoint: dict[str, Any]) -> None:
        del checkpoint["topomae"]["plan"]["intensities"]
        del checkpoint["topomae"]["plan"]["architecture"]["dropout"]
        del checkpoint["topomae"]["config"]["architecture"]["dropout"]
        for stage in ("pretraining", "finetuning"):
            del checkpoint["topomae"]["config"][stage]["warmup_steps"]
            checkpoint["topomae"]["config"][stage]["warmup_epochs"] = 50

    old = _change(pretrained.file, forget)
    capsys.readouterr()
    _give(_trainer(), old)
    assert "does not say its intensities: not compared" in capsys.readouterr().out


def test_what_may_differ_between_plans(pretrained: Pretrained) -> None:
    plans = _plans()
    architecture = plans["configurations"]["3d_fullres"]["topomae"]["architecture"]
    architecture |= {"drop_path": 0.3, "gamma": 0.5}
    trainer = _trainer(plans=plans)
    _give(trainer, pretrained.file)
    gammas = [name for name in pretrained.weights if name.startswith("encoder.") and name.endswith("gamma")]
    own = trainer.network.state_dict()
    assert gammas and all(torch.equal(own[name], pretrained.weights[name]) for name in gammas)
    architecture["upsampling"] = "trilinear"
    with pytest.raises(ValueError, match=r"architecture.upsampling: checkpoint 'transposed', plan 'trilinear'"):
        _give(_trainer(plans=plans), pretrained.file)


def test_files_that_prove_nothing_are_refused(pretrained: Pretrained, tmp_path: Path) -> None:
    def strip(checkpoint: dict[str, Any]) -> None:
        del checkpoint["topomae"]

    with pytest.raises(ValueError, match="nothing says which cases its weights have seen"):
        _give(_trainer(), _change(pretrained.file, strip))
    with pytest.raises(FileNotFoundError, match="-pretrained_weights names .*none.pth"):
        _give(_trainer(), tmp_path / "none.pth")
    with pytest.raises(ValueError, match="'scratch'.*-pretrained_weights"):
        _give(_trainer(pretrained="scratch"), pretrained.file)


def test_weights_loaded_by_anybody_else_are_refused(pretrained: Pretrained) -> None:
    trainer = _trainer(pretrained="scratch")
    trainer.network.load_state_dict(trainer.network.state_dict())
    with pytest.raises(ValueError, match="nothing says which cases.*finetuning.pretrained=FILE"):
        trainer.on_train_start()


class _Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("way", ["-pretrained_weights", "--c", "finetuning.pretrained", "pretraining.start"])
def test_a_checkpoint_that_would_run_code_is_refused_whichever_way_it_comes(way: str, tmp_path: Path) -> None:
    file, executed = tmp_path / "attack.pth", tmp_path / "executed"
    plans = _plans()
    section = plans["configurations"]["3d_fullres"]["topomae"]
    kind: Any = TopoMAEPretrainer if way == "pretraining.start" else TopoMAEFusionTrainer
    if not way.startswith("-"):
        part, key = way.split(".")
        section[part][key] = str(file)
    trainer = _trainer(kind=kind, plans=plans)
    if way == "--c":
        file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    torch.save({"network_weights": {}, "topomae": {"role": "pretraining"}, "logging": [_Attack(executed)]}, file)
    with pytest.raises(UntrustedCheckpointError, match=f"{file.name}.*runs code"):
        if way == "--c":
            run_training.maybe_load_checkpoint(trainer, True, False, None)
        elif way == "-pretrained_weights":
            _give(trainer, file)
        else:
            trainer.on_train_start()
    assert not executed.exists()
    torch.load(file, weights_only=False)
    assert executed.exists()  # it would have run


def test_a_training_continues_and_predicts_from_its_own_checkpoint(
    pretrained: Pretrained, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _trainer()
    first.on_train_start()
    file = str(Path(first.output_folder) / "checkpoint_latest.pth")
    first.save_checkpoint(file)
    again = _trainer()
    run_training.maybe_load_checkpoint(again, True, False, None)
    capsys.readouterr()
    again.on_train_start()
    assert "continuing with the weights" in capsys.readouterr().out
    own = first.network.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in again.network.state_dict().items())
    # As nnUNetPredictor does it.
    network = TopoMAEFusionTrainer.build_network_architecture(
        again.plans_manager, again.configuration_manager, 1, 2, enable_deep_supervision=False
    )
    network.load_state_dict(torch.load(file, weights_only=False)["network_weights"])


def test_a_trainer_that_starts_from_scratch_refuses_given_weights(pretrained: Pretrained) -> None:
    """It would train on weights that have seen validation cases, and nothing would say so."""
    trainer = UNETRPPTrainer(_plans(), "3d_fullres", 1, DESCRIPTION, torch.device("cpu"))
    trainer.initialize()
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    run_training.maybe_load_checkpoint(trainer, False, False, str(pretrained.file))
    with pytest.raises(ValueError, match="UNETRPPTrainer starts from scratch.*checkpoint_final.pth"):
        trainer.on_train_start()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_stock_trainers_are_left_to_nnunet(pretrained: Pretrained, capsys: pytest.CaptureFixture[str]) -> None:
    _trainer()
    other = nnUNetTrainer(_plans(), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
    other.initialize()
    file = pretrained.file.with_name("stock.pth")
    weights = {name: value + 1 for name, value in other.network.state_dict().items()}
    torch.save({"network_weights": weights}, file)
    run_training.maybe_load_checkpoint(other, False, False, str(file))
    assert "Loading pretrained weights from file" in capsys.readouterr().out
    own = {name: value for name, value in other.network.state_dict().items() if ".seg_layers." not in name}
    assert own and all(torch.equal(value, weights[name]) for name, value in own.items())


@pytest.mark.slow
@pytest.mark.parametrize(("transfer", "given"), [("same_plan", True), ("resample", False)])
@pytest.mark.parametrize(
    ("transfer_parts", "taken"),
    [
        ("both", {"vit_encoder", "encoder", "decoder"}),
        ("vit", {"vit_encoder"}),
        ("partner", {"encoder", "decoder"}),
    ],
)
def test_parts_that_are_not_transferred_start_fresh_and_learn_fast(
    pretrained: Pretrained, transfer: str, given: bool, transfer_parts: str, taken: set[str]
) -> None:
    trainer = _trainer(transfer=transfer, transfer_parts=transfer_parts)
    fresh = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    if given:
        _give(trainer, pretrained.file)
    else:
        trainer.on_train_start()
    own, rates, written = trainer.network.state_dict(), _rates(trainer), _written(trainer)
    once = without_aliases(own)
    expected = {name for name in once if name.split(".")[0] in taken and ".seg_layers." not in name}
    assert {name for name, what in written["weights"].items() if what == "copied"} == expected
    assert written["counts"]["matched"] == len(expected) and written["counts"]["missing"] == len(once) - len(expected)
    for name, value in once.items():
        assert torch.equal(value, (pretrained.weights if name in expected else fresh)[name]), name
    assert rates == {name: SLOW if name in expected else FAST for name in rates}
    assert written["source"]["vit"] == ("vit_encoder" in taken)
    assert written["source"]["partner"] == ("encoder" in taken)


def test_what_vectorpose_has_trained_is_the_partner_and_the_vit_starts_fresh() -> None:
    before = VectorPOSEPretrainer(_plans(), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
    before.initialize()
    before.images_read = ImagesRead(dict.fromkeys(SPLITS[0]["train"], "hash"))
    before.save_checkpoint(str(Path(before.output_folder) / "checkpoint_final.pth"))
    with pytest.raises(ValueError, match="no loss of this pre-training has trained the ViT"):
        _trainer(pretrainer="VectorPOSEPretrainer").on_train_start()
    trainer = _trainer(pretrainer="VectorPOSEPretrainer", transfer_parts="partner")
    trainer.on_train_start()
    weights, own, rates = unwrap(before.network).state_dict(), trainer.network.state_dict(), _rates(trainer)
    taken = [name for name in without_aliases(own) if name.startswith(("encoder.", "decoder.")) and ".seg" not in name]
    assert taken and all(torch.equal(own[name], weights[name]) for name in taken)
    assert rates == {name: SLOW if name in taken else FAST for name in rates}
    assert _written(trainer)["source"] | {"vit": False, "partner": True} == _written(trainer)["source"]


@pytest.mark.parametrize(
    ("transfer", "transfer_parts"),
    [
        ("same_plan", "both"),
        ("resample", "vit"),
        pytest.param("same_plan", "vit", marks=pytest.mark.slow),
        pytest.param("resample", "both", marks=pytest.mark.slow),
    ],
)
def test_an_absent_weight_of_a_transferred_part_is_refused(
    pretrained: Pretrained, transfer: str, transfer_parts: str
) -> None:
    absent = "vit_encoder.norm.weight"

    def remove(checkpoint: dict[str, Any]) -> None:
        del checkpoint["network_weights"][absent]

    file = _change(pretrained.file, remove)
    with pytest.raises(ValueError, match=f"{absent} is absent"):
        _give(_trainer(transfer=transfer, transfer_parts=transfer_parts), file)
    _give(_trainer(transfer=transfer, transfer_parts="partner"), file)


def test_unetr_takes_the_vit_and_refuses_to_leave_it_out(pretrained: Pretrained) -> None:
    trainer = _trainer(kind=UNETRTrainer)
    _give(trainer, pretrained.file)
    copied = {name.split(".")[0] for name, what in _written(trainer)["weights"].items() if what == "copied"}
    assert copied == {"vit_encoder"}
    with pytest.raises(ValueError, match="only pre-trained part of UNETR"):
        _trainer(kind=UNETRTrainer, transfer_parts="partner")


def test_unetr_from_scratch_ignores_what_would_be_taken_over() -> None:
    trainer = _trainer(kind=UNETRTrainer, transfer_parts="partner", pretrained="scratch")
    trainer._save_debug_information()  # as nnU-Net does: it reads every attribute


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lambda1", "untrained", "cure"), [(0.0, "the ViT's partner", "vit"), (1.0, "the ViT", "partner")]
)
def test_an_encoder_that_no_loss_has_trained_is_not_taken(
    pretrained: Pretrained, lambda1: float, untrained: str, cure: str
) -> None:
    def train_one(checkpoint: dict[str, Any]) -> None:
        checkpoint["topomae"]["config"]["pretraining"] |= {"lambda1": lambda1, "lambda3": 0.0}

    file = _change(pretrained.file, train_one)
    with pytest.raises(ValueError, match=rf"no loss .*has trained .*{untrained}.*transfer_parts={cure}"):
        _give(_trainer(), file)
    trainer = _trainer(transfer_parts=cure)
    _give(trainer, file)
    assert _written(trainer)["source"]["vit"] == (cure == "vit")
