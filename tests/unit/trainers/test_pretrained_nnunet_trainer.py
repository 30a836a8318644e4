"""Pre-training of the plan's own network, and where its weights go, on a data set without a single voxel."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_topomae import __version__
from nnunet_topomae.cli import main
from nnunet_topomae.data.cases import ImagesRead
from nnunet_topomae.nnunet.folders import nnunet_folder
from nnunet_topomae.trainers.fusion_trainer import TopoMAEFusionTrainer
from nnunet_topomae.trainers.pretrained_nnunet_trainer import PretrainedNNUNetTrainer
from nnunet_topomae.trainers.pretrainer import TopoMAEPretrainer
from nnunet_topomae.trainers.seeded_trainer import SeededNNUNetTrainer
from nnunet_topomae.trainers.vectorpose_pretrainer import VectorPOSEPretrainer
from nnunet_topomae.training.devices import unwrap
from nnunet_topomae.training.exports import load_encoder, nnssl_entry
from nnunet_topomae.training.model_card import count_images
from nnunet_topomae.training.start import _named
from nnunet_topomae.training.transfer import without_aliases

pytestmark = pytest.mark.usefixtures("uncounted_macs")

DATASET = "Dataset007_Tiny"
CASES = [f"c{number}" for number in range(5)]
SPLITS = [{"train": [case for case in CASES if case != left_out], "val": [left_out]} for left_out in CASES]
DESCRIPTION = {
    "channel_names": {"0": "MR"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}
RESIDUAL = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"


def _plans(
    partner: str = "plan", vit: str = "tiny", residual: bool = False, tasks: str = "both", **finetuning: Any
) -> dict[str, Any]:
    """The data set's plans, with a section of ours; their network may have a residual encoder."""
    plans: dict[str, Any] = json.loads((nnunet_folder("nnUNet_preprocessed") / DATASET / "Plans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["topomae"] = {
        "architecture": {"partner": partner, "vit": vit, "dims": [8, 8, 16, 16], "depth": 1},
        "pretraining": {"seed": 1, "partner_learning_rate": 1e-3},
        "vectorpose": {"tasks": tasks},
        "finetuning": {"seed": 1, **finetuning},
    }
    if residual:
        configuration["architecture"]["network_class_name"] = RESIDUAL
        arguments = configuration["architecture"]["arch_kwargs"]
        arguments["n_blocks_per_stage"] = arguments.pop("n_conv_per_stage")
    return plans


@pytest.fixture(autouse=True)
def _dataset(nnunet_env: Any, tiny_plans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nnunet_env.preprocessed / DATASET
    (folder / "Plans_3d_fullres").mkdir(parents=True)
    (folder / "splits_final.json").write_text(json.dumps(SPLITS))
    (folder / "Plans.json").write_text(json.dumps(tiny_plans(DATASET)))
    for case in CASES:
        (folder / "Plans_3d_fullres" / f"{case}.b2nd").write_bytes(case.encode())
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)


def _trainer(kind: Any, plans: dict[str, Any], fold: int = 0) -> Any:
    trainer = kind(deepcopy(plans), "3d_fullres", fold, DESCRIPTION, torch.device("cpu"))
    trainer.initialize()
    return trainer


def _pretrain(kind: Any = TopoMAEPretrainer, stages: int = 4, **architecture: str) -> Path:
    """A finished pre-training of fold 0 with other weights than at its start."""
    trainer = _trainer(kind, _with_stages(_plans(**architecture), stages))
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(torch.rand_like(parameter))
    trainer.images_read = ImagesRead(dict.fromkeys(SPLITS[0]["train"], "hash"))
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(file))
    return file


def _with_stages(plans: dict[str, Any], stages: int) -> dict[str, Any]:
    """Plans whose own network has only the first of its four stages; the others would be coarser."""
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    for key in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage"):
        if key in arguments:
            arguments[key] = arguments[key][:stages]
    arguments |= {"n_stages": stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
    return plans


@pytest.mark.parametrize("vit", ["tiny", "none"])
def test_starts_from_the_folds_pre_training_as_nnunet_trains(vit: str) -> None:
    file = _pretrain(vit=vit)
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(vit=vit, sgd_pretrained_learning_rate=1e-3))
    assert type(trainer.network).__name__ == "PlainConvUNet"
    _check_start(trainer, file, fresh="decoder.")
    group = trainer.optimizer.param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    assert trainer.clip == 12.0
    stock = _trainer(nnUNetTrainer, _plans())
    assert isinstance(trainer.loss, DeepSupervisionWrapper)
    assert tuple(trainer.loss.weight_factors) == tuple(stock.loss.weight_factors)
    assert trainer._get_deep_supervision_scales() == stock._get_deep_supervision_scales()


def _check_start(trainer: Any, file: Path, fresh: str | tuple[str, ...]) -> None:
    """Weights and rates after the start: those whose names begin with `fresh` are not taken over."""
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.on_train_start()
    weights, own = (
        torch.load(file, weights_only=False)["network_weights"],
        without_aliases(trainer.network.state_dict()),
    )
    taken = {name for name in own if not name.startswith(fresh)}
    assert taken
    for name, value in own.items():
        assert torch.equal(value, weights[name] if name in taken else before[name]), name
    assert all(rate == (1e-3 if name in taken else 1e-2) for name, rate in _rates(trainer).items())


def _rates(trainer: Any) -> dict[str, float]:
    """Learning rates by the names of the weights, of all that are trained."""
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in unwrap(trainer.network).named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("trainer", "partner", "decoder", "fresh"),
    [
        (PretrainedNNUNetTrainer, "plan", "auto", "decoder."),
        (PretrainedNNUNetTrainer, "plan", "no", "decoder."),
        (PretrainedNNUNetTrainer, "plan", "yes", "decoder.seg_layers."),
        (TopoMAEFusionTrainer, "plan", "auto", "decoder.seg_layers."),
        (TopoMAEFusionTrainer, "plan", "no", "decoder."),
        (TopoMAEFusionTrainer, "unetrpp", "auto", "decoder.seg_layers."),
        (TopoMAEFusionTrainer, "unetrpp", "no", ("decoder.", "encoder.full_resolution.")),
    ],
)
def test_the_plan_says_whether_the_decoder_is_taken_over(
    trainer: Any, partner: str, decoder: str, fresh: str | tuple[str, ...]
) -> None:
    """With it comes the layer of UNETR++'s encoder that only the decoder reads."""
    file = _pretrain(vit="none", partner=partner)
    rates = {"sgd_pretrained_learning_rate": 1e-3, "learning_rate": 1e-2, "pretrained_learning_rate": 1e-3}
    started = _trainer(trainer, _plans(vit="none", partner=partner, transfer_decoder=decoder, **rates))
    _check_start(started, file, fresh)


def test_heads_alone_learn_on_a_pre_trained_decoder() -> None:
    _pretrain()
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(schedule="head_only"))
    trainer.on_train_start()
    learning = {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    assert learning and all(name.startswith("decoder.seg_layers.") for name in learning)


def test_counts_every_weight_once() -> None:
    _pretrain()
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(transfer_decoder="yes"))
    trainer.on_train_start()
    written = json.loads((Path(trainer.output_folder) / "transfer.json").read_text())
    assert written["counts"]["matched"] + written["counts"]["missing"] == len(list(trainer.network.parameters()))
    assert all(
        name.startswith("decoder.seg_layers.") for name in written["weights"] if written["weights"][name] == "fresh"
    )


def test_another_fold_is_refused() -> None:
    file = _pretrain()
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(), fold=1)
    trainer.given_weights = file
    with pytest.raises(ValueError, match=r"1 validation cases of this fold.*\(c1\)"):
        trainer.on_train_start()


def test_the_seeded_baseline_takes_no_weights(tmp_path: Path) -> None:
    """nnU-Net would unpickle the file and ask nothing; the baseline would have seen validation cases."""
    trainer = _trainer(SeededNNUNetTrainer, _plans())
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    run_training.maybe_load_checkpoint(trainer, False, False, str(tmp_path / "given.pth"))
    with pytest.raises(ValueError, match="SeededNNUNetTrainer starts from scratch.*given.pth"):
        trainer.on_train_start()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_another_partner_is_refused_with_both_sides() -> None:
    unetrpp, own = _pretrain(partner="unetrpp"), _plans(pretrained="FILE")
    own["configurations"]["3d_fullres"]["topomae"]["finetuning"]["pretrained"] = str(unetrpp)
    with pytest.raises(ValueError, match=r"architecture.partner: checkpoint 'unetrpp', plan 'plan'"):
        _trainer(PretrainedNNUNetTrainer, own).on_train_start()
    with pytest.raises(ValueError, match=r"partner of this plan is 'unetrpp'.*--set architecture.partner=plan"):
        _trainer(PretrainedNNUNetTrainer, _plans(partner="unetrpp"))
    file = _pretrain()
    wider = _plans(pretrained=str(file))
    wider["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8, 12]
    features = r"\(network.features_per_stage: checkpoint \[4, 6, 8, 10\], plan \[4, 6, 8, 12\]\).* Or adapt"
    with pytest.raises(ValueError, match=features):
        _trainer(PretrainedNNUNetTrainer, wider).on_train_start()


@pytest.mark.parametrize("kind", [PretrainedNNUNetTrainer, TopoMAEFusionTrainer, TopoMAEPretrainer])
@pytest.mark.parametrize("transfer", ["same_plan", "resample"])
def test_a_network_of_another_class_is_refused_and_never_taken_in_part(kind: Any, transfer: str) -> None:
    """Layers of a plain and of a residual encoder have other names, so all of the encoder would start fresh."""
    trainer = _trainer(kind, _plans(transfer=transfer))
    trainer.given_weights = _pretrain(residual=True)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match="network: checkpoint 'ResidualEncoderUNet', plan 'PlainConvUNet'") as error:
        trainer.on_train_start()
    assert "transfer=resample" not in str(error.value)  # would not help
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_weights_for_stock_nnunet_are_no_pre_training_and_the_error_says_whose_they_are(tmp_path: Path) -> None:
    stock, exported = tmp_path / "stock.pth", tmp_path / "exported.pth"
    _trainer(nnUNetTrainer, _plans()).save_checkpoint(str(stock))
    assert main(["export-weights", str(_pretrain()), "--for", "nnUNetTrainer", "-o", str(exported)]) == 0
    cures = {
        PretrainedNNUNetTrainer: "Name the checkpoint_final.pth of a pre-training",
        TopoMAEPretrainer: "Name such a checkpoint, or leave out pretraining.start|Start from that checkpoint",
    }
    for kind, cure in cures.items():
        for file, says in ((stock, "-tr nnUNetTrainer has written it"), (exported, "export-weights` has written it")):
            trainer = _trainer(kind, _plans())
            trainer.given_weights = file
            with pytest.raises(ValueError, match=f"{file.name}(,.* no checkpoint|, and nothing| is not a)") as error:
                trainer.on_train_start()
            assert says in str(error.value) and re.search(cure, str(error.value))


def test_doctor_compares_the_plans_own_network_with_the_checkpoints(
    nnunet_env: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _pretrain()
    found = {}
    for width in (10, 12):
        plans = _plans()
        plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"][-1] = width
        (nnunet_env.preprocessed / DATASET / "Plans.json").write_text(json.dumps(plans))
        capsys.readouterr()
        main(["doctor", "--json", "--checkpoint", str(file)])
        found[width] = next(one for one in json.loads(capsys.readouterr().out)["checks"] if one["name"] == "plan")
    assert found[10]["status"] == "ok" and found[12]["status"] == "error"
    assert "network.features_per_stage: checkpoint [4, 6, 8, 10], plan [4, 6, 8, 12]" in found[12]["value"]


def test_a_checkpoint_of_unetrpps_other_sizes_does_not_matter() -> None:
    _pretrain()
    plans = _plans()
    plans["configurations"]["3d_fullres"]["topomae"]["architecture"]["dims"] = [8, 16, 16, 32]
    _trainer(PretrainedNNUNetTrainer, plans).on_train_start()


def test_another_number_of_stages_is_adapted() -> None:
    file = _pretrain()
    plans = _with_stages(_plans(pretrained=str(file), transfer="resample", transfer_decoder="yes"), 3)
    trainer = _trainer(PretrainedNNUNetTrainer, plans)
    trainer.on_train_start()
    weights, own = torch.load(file, weights_only=False)["network_weights"], trainer.network.state_dict()
    assert torch.equal(own["encoder.stages.2.0.convs.0.conv.weight"], weights["encoder.stages.2.0.convs.0.conv.weight"])
    # Stages of the decoder are numbered from the coarsest one on.
    assert torch.equal(own["decoder.transpconvs.0.weight"], weights["decoder.transpconvs.1.weight"])


@pytest.mark.parametrize("kind", [PretrainedNNUNetTrainer, TopoMAEFusionTrainer, SeededNNUNetTrainer])
def test_a_network_of_two_stages_has_a_loss(kind: Any) -> None:
    """Its only output is the coarsest one too, which nnU-Net gives no weight."""
    plans = _plans(pretrained="scratch")
    trainer = _trainer(kind, _with_stages(plans, 2))
    outputs = trainer.network(torch.rand(2, 1, 16, 24, 32))
    loss = trainer.loss(outputs, [torch.zeros(2, 1, 16, 24, 32)])
    assert len(outputs) == 1 and loss == trainer.loss.loss(outputs[0], torch.zeros(2, 1, 16, 24, 32))


@pytest.mark.slow
def test_fusion_with_the_plans_network_and_without_a_vit() -> None:
    _pretrain()
    fusion = _trainer(TopoMAEFusionTrainer, _plans())
    fusion.on_train_start()
    assert len(fusion.loss.weight_factors) == 3  # nnU-Net's scales: one per stage of the decoder
    _pretrain(vit="none")
    alone = _trainer(TopoMAEFusionTrainer, _plans(vit="none"))
    alone.on_train_start()
    assert {name.split(".")[0] for name, _ in alone.network.named_parameters()} == {"encoder", "decoder"}


def test_the_partner_may_have_a_learning_rate_of_its_own() -> None:
    trainer = _trainer(TopoMAEPretrainer, _plans())
    for name, rate in _rates(trainer).items():
        assert rate == pytest.approx(1.5e-4 if name.startswith("vit_") else 1e-3)


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, VectorPOSEPretrainer, PretrainedNNUNetTrainer])
def test_a_compiled_network_has_the_rates_of_the_plan(kind: Any) -> None:
    """nnU-Net compiles on CUDA, which puts a prefix before every name."""
    trainer = _trainer(kind, _plans(sgd_pretrained_learning_rate=1e-3))
    rates = trainer.lr_scheduler.describe()
    assert (kind is VectorPOSEPretrainer) != ("0.001 for" in rates and ("0.00015 for" in rates or "0.01 for" in rates))
    trainer.network = torch.compile(trainer.network, backend="eager")
    assert trainer.configure_optimizers()[1].describe() == rates


@pytest.mark.parametrize(("epochs", "said"), [(1, "its last one has 0% of it"), (4, "has 75% of it"), (5, "")])
def test_a_training_too_short_for_topologys_warm_up_says_so(
    epochs: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = _plans(vit="none")
    section = plans["configurations"]["3d_fullres"]["topomae"]
    section["pretraining"]["epochs"], section["topology"] = epochs, {"warmup_epochs": 4}
    _trainer(TopoMAEPretrainer, plans)
    printed = capsys.readouterr().out
    assert ("Lower topology.warmup_epochs" in printed) == bool(said) and said in printed


@pytest.mark.parametrize("with_decoder", [False, True])
def test_stock_nnunet_loads_the_exported_file(
    with_decoder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, target = _pretrain(), tmp_path / "weights.pth"
    command = ["export-weights", str(file), "--for", "nnUNetTrainer", "-o", str(target)]
    assert main([*command, *(["--with-decoder"] if with_decoder else [])]) == 0
    said = capsys.readouterr().out
    assert f"nnUNetv2_train {DATASET} 3d_fullres 0 -p Plans -tr nnUNetTrainer -pretrained_weights {target}" in said
    assert "These have seen, in fold 0: 4 training cases, 0 unlabelled images. Use them for that fold only" in said
    exported = torch.load(target, weights_only=True)
    origin = {key: value for key, value in exported["pretraining"].items() if key != "version"}
    assert origin["images"].startswith("4 training cases") and not any(case in str(origin) for case in CASES)
    assert origin["decoder_trained"] == with_decoder
    network = _trainer(nnUNetTrainer, _plans()).network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained_weights(network, str(target))
    weights = torch.load(file, weights_only=False)["network_weights"]
    for name, value in network.state_dict().items():
        if ".seg_layers." in name:
            assert torch.equal(value, before[name])
        elif with_decoder or name.startswith(("encoder.", "decoder.encoder.")):
            assert torch.equal(value, weights[name])
        elif value.ndim > 1:  # as nnU-Net initialises it, with another seed
            assert not torch.equal(value, weights[name])
            assert float(value.std()) == pytest.approx(float(before[name].std()), rel=0.2)
        else:
            assert torch.equal(value, before[name])


def test_the_same_file_is_exported_again(tmp_path: Path) -> None:
    file, state = _pretrain(), torch.get_rng_state()
    command = ["export-weights", str(file), "--for", "nnUNetTrainer", "-o"]
    first, second = (tmp_path / name for name in ("first.pth", "second.pth"))
    assert main([*command, str(first)]) == main([*command, str(second)]) == 0
    one, two = (torch.load(name, weights_only=True)["network_weights"] for name in (first, second))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_vectorpose_has_trained_is_exported_like_topomaes(tmp_path: Path) -> None:
    file, target, folder = _pretrain(VectorPOSEPretrainer), tmp_path / "weights.pth", tmp_path / "encoder"
    command = ["export-weights", str(file), "--for", "nnUNetTrainer", "--with-decoder", "-o", str(target)]
    assert main(command) == 0
    exported, weights = torch.load(target, weights_only=True), torch.load(file, weights_only=True)["network_weights"]
    assert exported["pretraining"]["trainer"] == "VectorPOSEPretrainer"
    network = _trainer(nnUNetTrainer, _plans()).network
    load_pretrained_weights(network, str(target))
    own = {name: value for name, value in network.state_dict().items() if ".seg_layers." not in name}
    assert own and all(torch.equal(value, weights[name]) for name, value in own.items())
    assert main(["export-encoder", str(file), "--encoder", "partner", "-o", str(folder)]) == 0
    encoder = load_encoder(folder).state_dict()
    assert encoder and all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in encoder.items())
    assert main(["export-encoder", str(file), "--encoder", "vit", "-o", str(folder)]) == 2


@pytest.mark.parametrize("named", [False, True])
def test_a_decoder_that_no_loss_has_trained_starts_fresh(named: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors alone are read from the encoder."""
    file = _pretrain(VectorPOSEPretrainer, tasks="vectors")
    vectorpose = {"tasks": "vectors", "pretrainer": "VectorPOSEPretrainer", "pretrained_learning_rate": 1e-5}
    source = {"pretrained": str(file)} if named else vectorpose
    source["transfer_decoder"] = "yes"
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(sgd_pretrained_learning_rate=1e-3, **source))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.on_train_start()
    weights, own = torch.load(file, weights_only=True)["network_weights"], trainer.network.state_dict()
    for name in without_aliases(own):
        assert torch.equal(own[name], weights[name] if name.startswith("encoder.") else before[name]), name
    assert "no loss of this pre-training has trained the decoder: it starts fresh" in capsys.readouterr().out
    became = json.loads((Path(trainer.output_folder) / "transfer.json").read_text())["weights"]
    assert {name for name in became if became[name] == "fresh"} == {n for n in became if n.startswith("decoder.")}
    rates = _rates(trainer)
    assert all(rate == (1e-2 if name.startswith("decoder.") else 1e-3) for name, rate in rates.items())


def test_what_no_loss_has_trained_of_unetrpp_is_neither_taken_nor_frozen() -> None:
    """Vectors alone leave as random as they were: the decoder, and the encoder's layer that only the decoder reads."""
    file = _pretrain(VectorPOSEPretrainer, tasks="vectors", partner="unetrpp", vit="none")
    same: dict[str, Any] = {"vit": "none", "partner": "unetrpp", "tasks": "vectors"}
    own = _plans(**same, pretrainer="VectorPOSEPretrainer", schedule="head_only", pretrained_learning_rate=1e-3)
    own["configurations"]["3d_fullres"]["topomae"]["finetuning"]["learning_rate"] = 1e-2
    trainer = _trainer(TopoMAEFusionTrainer, own)
    learning = {name for name, p in trainer.network.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in learning} == {"decoder", "encoder"}
    assert all(name.startswith(("decoder.", "encoder.full_resolution.")) for name in learning)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.on_train_start()
    weights, after = (
        torch.load(file, weights_only=True)["network_weights"],
        without_aliases(trainer.network.state_dict()),
    )
    assert all(torch.equal(after[name], (before if name in learning else weights)[name]) for name in after)


def test_a_decoder_that_no_loss_has_trained_is_never_frozen() -> None:
    file = _pretrain(VectorPOSEPretrainer, tasks="vectors")
    own = _plans(tasks="vectors", pretrainer="VectorPOSEPretrainer", schedule="head_only")
    trainer = _trainer(PretrainedNNUNetTrainer, own)
    trainer.on_train_start()
    assert all(p.requires_grad == n.startswith("decoder.") for n, p in trainer.network.named_parameters())
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(pretrained=str(file), schedule="head_only"))  # takes the decoder
    with pytest.raises(ValueError, match=r"_final.pth has nothing for .*, such as decoder.*'head_only' would"):
        trainer.on_train_start()


def test_a_decoder_that_only_the_given_file_has_trained_counts_as_pre_trained() -> None:
    """The plan's own pre-training would leave it random."""
    file = _pretrain(VectorPOSEPretrainer)
    own: dict[str, Any] = {"tasks": "vectors", "pretrainer": "VectorPOSEPretrainer", "transfer_decoder": "yes"}
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(**own, sgd_pretrained_learning_rate=1e-3))
    trainer.given_weights = file
    _check_start(trainer, file, fresh="decoder.seg_layers.")
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(**own, schedule="head_only"))
    trainer.given_weights = file
    with pytest.raises(ValueError, match=rf"such as decoder.*has not frozen them.*--set finetuning.pretrained={file}"):
        trainer.on_train_start()
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(**own, schedule="head_only", pretrained=str(file)))
    trainer.on_train_start()
    assert all(name.startswith("decoder.seg_layers.") for name in _rates(trainer))


NEW_STAGES = pytest.mark.parametrize(
    ("kind", "partner"), [(PretrainedNNUNetTrainer, "plan"), (TopoMAEFusionTrainer, "unetrpp")]
)


def _plans_of_four_stages(file: Path, partner: str, **finetuning: Any) -> dict[str, Any]:
    """Plans that take over a pre-training of three stages."""
    rates = {"sgd_pretrained_learning_rate": 1e-3, "learning_rate": 1e-2, "pretrained_learning_rate": 1e-3}
    own: dict[str, Any] = {"transfer": "resample", "transfer_decoder": "yes", "pretrained": str(file)}
    plans = _plans(partner, **own, **rates, **finetuning)
    if partner == "unetrpp":  # its stages follow from the patch
        plans["configurations"]["3d_fullres"]["patch_size"] = [16, 48, 64]
    return plans


@NEW_STAGES
@pytest.mark.parametrize("schedule", ["full", "staged"])
def test_stages_that_the_pre_training_lacks_learn_like_all_fresh_weights(
    kind: Any, partner: str, schedule: str
) -> None:
    plans = _plans_of_four_stages(_pretrain(partner=partner, stages=3), partner, schedule=schedule)
    trainer = _trainer(kind, plans)
    trainer.on_train_start()
    became = json.loads((Path(trainer.output_folder) / "transfer.json").read_text())["weights"]
    rates = _rates(trainer)
    assert rates == {name: 1e-2 if became[name] == "fresh" else 1e-3 for name in rates}
    new = {name for name in rates if name.startswith("encoder.stages.3.")}
    assert new and all(rates[name] == 1e-2 for name in new)
    assert {rates[name] for name in rates if name.startswith("encoder.stages.1.")} == {1e-3}
    trainer.lr_scheduler.step(0)
    first = _rates(trainer)
    assert all(
        (first[name] > 0) == (schedule == "full" or name in new) for name in first if name.startswith("encoder.stages.")
    )
    # `--c` builds the same groups, although it does not read the pre-training again.
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    again = _trainer(kind, plans)
    assert again.lr_scheduler.describe() != trainer.lr_scheduler.describe()
    run_training.maybe_load_checkpoint(again, True, False, None)
    again.lr_scheduler.step(0)
    assert _rates(again) == first and again.lr_scheduler.describe() == trainer.lr_scheduler.describe()
    assert again.progress(0)["fresh"] == trainer.progress(0)["fresh"]


@NEW_STAGES
def test_stages_that_the_pre_training_lacks_are_never_frozen(kind: Any, partner: str) -> None:
    plans = _plans_of_four_stages(_pretrain(partner=partner, stages=3), partner, schedule="head_only")
    with pytest.raises(ValueError, match=r"has nothing for \d+ weights, such as encoder.*would freeze them as random"):
        _trainer(kind, plans).on_train_start()


@pytest.mark.parametrize("transfer", ["same_plan", pytest.param("resample", marks=pytest.mark.slow)])
def test_a_vit_of_another_size_does_not_matter_to_the_partner(transfer: str) -> None:
    weights = torch.load(_pretrain(vit="tiny"), weights_only=True)["network_weights"]
    trainer = _trainer(PretrainedNNUNetTrainer, _plans(vit="small", transfer=transfer, transfer_decoder="yes"))
    trainer.on_train_start()
    own = {name: value for name, value in trainer.network.state_dict().items() if ".seg_layers." not in name}
    assert own and all(torch.equal(value, weights[name]) for name, value in own.items())


@pytest.mark.slow
@pytest.mark.parametrize("transfer", ["same_plan", "resample"])
def test_a_vit_of_another_size_is_not_fused(transfer: str) -> None:
    plans = _plans(vit="small", transfer=transfer, pretrained=str(_pretrain(vit="tiny")))
    with pytest.raises(ValueError, match="architecture.vit: checkpoint 'tiny', plan 'small'"):
        _trainer(TopoMAEFusionTrainer, plans).on_train_start()


def test_another_plans_pre_training_is_asked_of_its_own_trainer() -> None:
    _pretrain(VectorPOSEPretrainer)
    plans = _plans(pretrainer="VectorPOSEPretrainer")
    plans["configurations"]["3d_fullres"]["spacing"] = [2.5, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"spacing: .*nnUNetv2_train ... -tr VectorPOSEPretrainer -p PLANS"):
        _trainer(PretrainedNNUNetTrainer, plans).on_train_start()


def test_an_export_says_that_no_loss_has_trained_the_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    for tasks, trained in (("vectors", False), ("both", True)):
        file = _pretrain(VectorPOSEPretrainer, tasks=tasks)
        assert main(["export-weights", str(file), "--for", "nnUNetTrainer", "--with-decoder"]) == 0
        assert ("No loss of this pre-training has trained the decoder" in capsys.readouterr().out) != trained
        exported = torch.load(file.with_name("for_nnUNetTrainer.pth"), weights_only=True)
        assert exported["pretraining"]["decoder_trained"] == trained


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, VectorPOSEPretrainer])
def test_a_2d_plan_is_refused(kind: Any) -> None:
    plans = _plans()
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [24, 32], "spacing": [1.0, 1.0]}
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments |= {key: [row[1:] for row in arguments[key]] for key in ("strides", "kernel_sizes")}
    arguments |= {key: arguments[key].replace("3d", "2d") for key in ("conv_op", "norm_op")}
    with pytest.raises(ValueError, match=r"patch_size must have three entries .*3D configurations only"):
        kind(plans, "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, PretrainedNNUNetTrainer, TopoMAEFusionTrainer])
def test_a_plan_of_primus_is_refused(kind: Any) -> None:
    """As such a plan is: its network has no stages, so no list of strides either."""
    plans = _plans()
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.primus.PrimusS",
        "arch_kwargs": {"patch_embed_size": [8, 8, 8], "input_shape": [16, 24, 32]},
        "_kw_requires_import": [],
    }
    with pytest.raises(ValueError, match=r"Plans.json: .* names PrimusS, .* no encoder and decoder.* ResEnc planners"):
        kind(plans, "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))


def test_what_stock_nnunet_cannot_take_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _pretrain(partner="unetrpp")
    assert main(["export-weights", str(file), "--for", "nnUNetTrainer"]) == 2
    error = capsys.readouterr().err
    assert "holds a pre-trained UNETR++" in error and "-tr TopoMAEPretrainer -p NAME" in error
    vectorpose = _pretrain(VectorPOSEPretrainer, partner="unetrpp")
    assert main(["export-weights", str(vectorpose), "--for", "nnUNetTrainer"]) == 2
    assert "-tr VectorPOSEPretrainer -p NAME" in capsys.readouterr().err
    assert main(["export-weights", str(file), "--for", "nnUNetTrainer", "-o", str(file)]) == 2
    assert "is the checkpoint itself" in capsys.readouterr().err
    stock = tmp_path / "stock.pth"
    torch.save({"network_weights": {}}, stock)
    assert main(["export-weights", str(stock), "--for", "nnUNetTrainer"]) == 2
    assert "is not a checkpoint of TopoMAEPretrainer or VectorPOSEPretrainer" in capsys.readouterr().err
    assert not (tmp_path / "for_nnUNetTrainer.pth").exists()


def _damage(checkpoint: dict[str, Any], key: str) -> None:
    """Take something out of a checkpoint."""
    *above, last = key.split("/")
    for name in above:
        checkpoint = checkpoint[name]
    del checkpoint[last]


@pytest.mark.parametrize("command", ["export-weights", "export-encoder"])
def test_exports_name_a_damaged_checkpoint_and_write_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, damaged, target = _pretrain(vit="none"), tmp_path / "damaged.pth", tmp_path / "target"
    options = ["--for", "nnUNetTrainer"] if command == "export-weights" else []
    weight = "encoder.stages.1.0.convs.0.conv.weight"
    own = "trainer_name" if command == "export-weights" else "current_epoch"
    manifest = ("topomae/manifest/fold", "topomae/manifest/configuration")
    for key in (own, "init_args", "topomae/version", *manifest, f"network_weights/{weight}"):
        checkpoint = torch.load(file, weights_only=False)
        _damage(checkpoint, key)
        torch.save(checkpoint, damaged)
        assert main([command, str(damaged), *options, "-o", str(target)]) == 2
        error = capsys.readouterr().err
        missed = "stages.1.0.convs.0" if key.endswith(weight) else key.rpartition("/")[2]  # it has several names
        assert error.startswith(f"error: {damaged} is damaged") and missed in error, error
        assert "pre-train again" in error and error.count("\n") == 1 and not target.exists()
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["network_weights"][weight] = torch.zeros(2)
    torch.save(checkpoint, damaged)
    assert main([command, str(damaged), *options, "-o", str(target)]) == 2
    assert re.search("damaged.pth is damaged: .*stages.1.0.convs.0", capsys.readouterr().err)
    assert not target.exists()


def test_exports_say_where_they_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _pretrain(vit="none")
    for target in (tmp_path, tmp_path / "no folder" / "weights.pth"):
        assert main(["export-weights", str(file), "--for", "nnUNetTrainer", "-o", str(target)]) == 2
        error = capsys.readouterr().err
        assert f"cannot write checkpoint {target}" in error and "-o names another file" in error and "--c" not in error
    (tmp_path / "file").touch()
    assert main(["export-encoder", str(file), "-o", str(tmp_path / "file")]) == 2
    assert "file is a file, and an encoder is a folder: name another one" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(("which", "partner"), [("vit", "unetrpp"), ("partner", "unetrpp"), ("partner", "plan")])
def test_the_code_on_the_card_runs(
    which: str, partner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export-encoder", str(_pretrain(partner=partner)), "--encoder", which, "-o", "my_encoder"]) == 0
    codes = re.findall(r"```python\n(.*?)```", Path("my_encoder/README.md").read_text(), re.DOTALL)
    if which == "partner":  # and on the page, which has another crop
        (code,) = re.findall(r"```py\n(.*?load_encoder.*?)```", (repository / "docs/nnunet.md").read_text(), re.DOTALL)
        codes.append(code.replace("32, 48, 32", "16, 24, 32"))
    assert len(codes) == (2 if which == "partner" else 1)
    for code in codes:
        names: dict[str, Any] = {}
        exec(code, names)
        width = {"vit": 192, "unetrpp": 16, "plan": 10}[which if which == "vit" else partner]
        assert names["vector"].shape == (1, width) and len(code.strip().splitlines()) <= 10


@pytest.mark.slow
@pytest.mark.parametrize(("which", "part"), [("vit", "vit_encoder"), ("partner", "encoder")])
def test_an_exported_encoder_computes_the_same(tmp_path: Path, which: str, part: str) -> None:
    file, folder = _pretrain(), tmp_path / which
    assert main(["export-encoder", str(file), "--encoder", which, "-o", str(folder)]) == 0
    card = (folder / "README.md").read_text().replace(__version__, "")  # a commit may be called like a case
    assert DATASET in card and "4 training cases" in card and "c0" not in card and f'load_encoder("{which}")' in card
    trained = _trainer(TopoMAEPretrainer, _plans()).network
    trained.load_state_dict(torch.load(file, weights_only=False)["network_weights"])
    encoder, own = load_encoder(folder).eval(), trained.get_submodule(part).eval()
    crop = torch.rand(1, 1, 16, 24, 32)
    with torch.no_grad():
        pairs = zip(_as_list(encoder(crop)), _as_list(own(crop)), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
    content = json.loads((folder / "config.json").read_text())
    content["configuration"]["topomae"]["architecture"] |= {"vit": "small"}
    content["configuration"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8, 12]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model.safetensors does not fit config.json"):
        load_encoder(folder)
    for key, name in (("network_class_name", "os.system"), ("conv_op", "torch.nn.os.system")):
        changed = deepcopy(content)
        architecture = changed["configuration"]["architecture"]
        (architecture if key in architecture else architecture["arch_kwargs"])[key] = name
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"config.json names '{name}'.*Do not use this file"):
            load_encoder(folder)


def test_a_model_card_says_what_has_trained_the_encoder(tmp_path: Path) -> None:
    """The terms of its own loss, the epochs that were done, and images that nobody has listed."""
    folder = tmp_path / "encoder"
    cases: list[tuple[Any, dict[str, str], str, str]] = [
        (TopoMAEPretrainer, {}, "partner", "masked reconstruction, topology, key points, consistency with the other"),
        (TopoMAEPretrainer, {"vit": "none"}, "partner", "masked reconstruction, topology, key points. The methods"),
        (VectorPOSEPretrainer, {}, "partner", "reconstruction of corrupted crops, boundaries, vectors. The methods"),
        (VectorPOSEPretrainer, {"tasks": "vectors"}, "partner", "Terms of its loss: vectors. The methods"),
    ]
    for kind, architecture, which, terms in cases:
        file = _pretrain(kind, **architecture)
        assert main(["export-encoder", str(file), "--encoder", which, "-o", str(folder)]) == 0
        card = " ".join((folder / "README.md").read_text().split())
        assert terms in card and "| epochs | 1 of 200, 250 steps each |" in card
        assert ("arXiv 2406.10519" in card) == (kind is TopoMAEPretrainer)
    given = _nnssl(tmp_path / "of_a_patient.pth", _beginning(None, residual=True).network)
    trainer = _beginning(given, residual=True)
    trainer.on_train_start()
    trainer.save_checkpoint(str(tmp_path / "started.pth"))
    assert main(["export-encoder", str(tmp_path / "started.pth"), "-o", str(folder)]) == 0
    assert "and unknown ones: training started from 1 checkpoint that lists none" in (folder / "README.md").read_text()
    assert not any("of_a_patient" in path.read_text() for path in (folder / "README.md", folder / "config.json"))
    load_encoder(folder)


def test_an_image_of_another_data_set_counts_once_on_the_card() -> None:
    """Its preprocessed image and its raw files have a hash each, also where a chain of trainings hands them on."""
    first = ImagesRead({"a": "1", "b": "2"}, {"u": "3"}, {"a": "4", "b": "5"})
    second = _named(first, "Dataset001_A", "Dataset002_B")
    third = _named(second, "Dataset002_B", "Dataset003_C")
    for read in (second, third):
        assert set(first.contents()) == set(read.contents())
        assert "3 images of other data sets" in count_images({"cases": {}, "sources": read.sources})


def _as_list(output: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return output if isinstance(output, list) else [output]


def test_the_network_is_built_alike_for_inference() -> None:
    trainer = _trainer(PretrainedNNUNetTrainer, _plans())
    manager = trainer.configuration_manager
    network = PretrainedNNUNetTrainer.build_network_architecture(trainer.plans_manager, manager, 1, 2, False)
    assert isinstance(network, nn.Module) and network.decoder.deep_supervision is False


def _beginning(start: Path | None, fold: int = 0, **network: Any) -> Any:
    """A pre-training that is to start from a file."""
    plans = _plans(**{"vit": "none", **network})
    section = plans["configurations"]["3d_fullres"]["topomae"]
    section["pretraining"]["start"] = None if start is None else str(start)
    return _trainer(TopoMAEPretrainer, plans, fold)


def _nnssl(file: Path, network: nn.Module, channels: int = 1) -> Path:
    """A checkpoint as nnssl writes it, of a network with its decoder."""
    own = {name: value + 1 for name, value in network.state_dict().items() if name.startswith(("encoder.", "decoder."))}
    described = {
        "architecture_plans": {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None},
        "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [160] * 3, "spacing": [1.0] * 3}}},
        "pretrain_num_input_channels": channels,
        "recommended_downstream_patchsize": [160] * 3,
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    }
    torch.save({"network_weights": own, "nnssl_adaptation_plan": described, "citations": []}, file)
    return file


def test_a_pre_training_starts_from_another_and_has_read_its_images(capsys: pytest.CaptureFixture[str]) -> None:
    file = _pretrain(vit="none")
    file = file.rename(file.with_name("earlier.pth"))
    trainer = _beginning(file)
    trainer.on_train_start()
    weights, own = torch.load(file, weights_only=False)["network_weights"], trainer.network.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in own)
    # The earlier one listed made-up hashes of its images. They count as read by this one too.
    assert set(trainer.images_read.cases) == set(SPLITS[0]["train"]) and not trainer.images_read.unlisted
    report = json.loads((Path(trainer.output_folder) / "start.json").read_text())
    assert report["counts"]["missing"] == report["counts"]["unexpected"] == 0
    assert report["source"]["file"] == str(file) and set(report["images"]["cases"]) == set(SPLITS[0]["train"])
    assert "pre-training starts from" in capsys.readouterr().out
    # `-pretrained_weights` names the same file.
    given = _beginning(None)
    given.given_weights = file
    given.on_train_start()
    assert all(torch.equal(value, weights[name]) for name, value in given.network.state_dict().items())


def test_a_pre_training_with_other_tasks_takes_what_both_have() -> None:
    file = _pretrain(vit="tiny")
    trainer = _trainer(VectorPOSEPretrainer, _plans(vit="tiny"))
    trainer.given_weights = file
    trainer.on_train_start()
    weights, own = torch.load(file, weights_only=True)["network_weights"], trainer.network.state_dict()
    kept = [name for name in own if name.startswith(("encoder.", "decoder.")) and ".seg_layers." not in name]
    assert kept and all(torch.equal(own[name], weights[name]) for name in kept)
    report = json.loads((Path(trainer.output_folder) / "start.json").read_text())
    fresh = [name for name, became in report["weights"].items() if became == "fresh"]
    assert fresh and all(name.startswith(("vectors.", "decoder.seg_layers.")) for name in fresh)
    assert all(name.startswith(("vit_", "key_points.", "decoder.seg_layers.")) for name in report["unexpected"])


@pytest.mark.parametrize("trainer", [TopoMAEPretrainer, VectorPOSEPretrainer])
@pytest.mark.parametrize("patch", [None, [16, 32, 32]])
@pytest.mark.parametrize(("theirs", "ours"), [("tiny", "none"), ("none", "tiny")])
def test_a_pre_training_with_another_vit_takes_the_partner(
    trainer: Any, patch: list[int] | None, theirs: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the patch differs, and from a pre-training that leaves out the ViT that its plan has."""
    file = _pretrain(trainer, vit=theirs)
    plans = _plans(vit=ours)
    plans["configurations"]["3d_fullres"]["patch_size"] = patch or [16, 24, 32]
    started = _trainer(TopoMAEPretrainer, plans)
    started.given_weights = file
    before = {name: value.clone() for name, value in started.network.state_dict().items()}
    started.on_train_start()
    weights, own = torch.load(file, weights_only=True)["network_weights"], started.network.state_dict()
    kept = [name for name in own if name.startswith(("encoder.", "decoder.")) and ".seg_layers." not in name]
    assert kept and all(torch.equal(own[name], weights[name]) for name in kept)
    assert all(torch.equal(own[name], before[name]) for name in own if name.startswith("vit_"))
    said = f"the ViT's partner alone is taken over; architecture.vit: checkpoint '{theirs}', plan '{ours}'"
    assert said in capsys.readouterr().out


def test_a_pre_training_starts_from_one_that_has_left_its_vit_out() -> None:
    file = _pretrain(VectorPOSEPretrainer, vit="tiny")
    started = _trainer(TopoMAEPretrainer, _plans(vit="tiny"))
    started.given_weights = file
    started.on_train_start()
    report = json.loads((Path(started.output_folder) / "start.json").read_text())
    fresh = {name.split(".")[0] for name, became in report["weights"].items() if became == "fresh"}
    heads = {"vit_encoder", "vit_decoder", "vit_key_points", "key_points"}
    assert fresh == {*heads, "decoder"}  # of the decoder, what it rebuilds besides the image


def test_a_start_that_has_seen_a_validation_case_is_refused() -> None:
    file = _pretrain(vit="none")
    trainer = _beginning(file, fold=1)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    with pytest.raises(ValueError, match="validation cases of this fold"):
        trainer.on_train_start()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert not (Path(trainer.output_folder) / "start.json").exists()


def test_a_start_whose_images_were_normalised_in_another_way_is_refused() -> None:
    file, plans = _pretrain(vit="none"), _plans(vit="none")
    plans["configurations"]["3d_fullres"]["normalization_schemes"] = ["RescaleTo01Normalization"]
    trainer = _trainer(TopoMAEPretrainer, plans)
    trainer.given_weights = file
    with pytest.raises(ValueError, match=r"normalised in another way \(normalization: .*'ZScore.* plan \['RescaleTo01"):
        trainer.on_train_start()


def test_a_start_of_another_data_set_hands_on_both_hashes_of_every_image() -> None:
    """Of an image's preprocessed file and of its raw files: only the second one finds it under another plan."""
    file = _pretrain(vit="none")
    checkpoint = torch.load(file, weights_only=False)
    manifest = checkpoint["topomae"]["manifest"]
    manifest |= {"dataset": "Dataset008_Other", "cases": {"a": "prep"}, "unlabeled": {"u": "more"}}
    manifest["sources"] = {"a": "raw", "u": "raw of u"}
    torch.save(checkpoint, file := file.with_name("other.pth"))
    trainer = _beginning(file)
    trainer.on_train_start()
    read = {
        digest for part in ("cases", "unlabeled", "sources") for digest in getattr(trainer.images_read, part).values()
    }
    assert {"prep", "raw", "more", "raw of u"} <= read
    assert set(trainer.images_read.cases) == set(SPLITS[0]["train"])


def test_a_pre_training_starts_from_nnssl_which_lists_no_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _nnssl(tmp_path / "openmind.pth", _beginning(None, residual=True).network)
    trainer = _beginning(file, residual=True)
    trainer.on_train_start()
    weights, own = torch.load(file, weights_only=True)["network_weights"], trainer.network.state_dict()
    kept = [name for name in own if name.startswith(("encoder.", "decoder.")) and ".seg_layers." not in name]
    assert kept and all(torch.equal(own[name], weights[name]) for name in kept)
    assert list(trainer.images_read.unlisted) == ["openmind.pth"]
    assert "does not list the images" in capsys.readouterr().out
    # What is fine-tuned from it says so too.
    checkpoint = Path(trainer.output_folder) / "checkpoint_final.pth"
    trainer.save_checkpoint(str(checkpoint))
    tuned = _trainer(PretrainedNNUNetTrainer, _plans(vit="none", residual=True))
    tuned.on_train_start()
    assert "openmind.pth, which lists no images" in capsys.readouterr().out


def test_weights_that_are_nan_are_refused_and_copies_of_a_weight_count_once(tmp_path: Path) -> None:
    """Saved as half precision, every name of a weight has a tensor of its own."""
    trainer = _beginning(None, residual=True)
    content = torch.load(_nnssl(tmp_path / "a.pth", trainer.network), weights_only=True)
    content["network_weights"] = {name: value.half() for name, value in content["network_weights"].items()}
    torch.save(content, tmp_path / "a.pth")
    trainer.given_weights = tmp_path / "a.pth"
    trainer.on_train_start()
    report = json.loads((Path(trainer.output_folder) / "start.json").read_text())
    assert report["counts"]["matched"] > 20
    assert all(name.startswith("decoder.seg_layers.") for name in report["unexpected"])
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    content["network_weights"]["encoder.stem.convs.0.conv.weight"][0, 0, 0, 0, 0] = torch.nan
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="1 of .* weights to load hold NaN .* encoder.stem.convs.0.conv.weight"):
        trainer.on_train_start()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())


def test_nnssls_largest_network_has_its_name_in_the_exports_entry() -> None:
    """Its own plans say what it is; any other residual encoder is described in full."""
    plans = _plans(residual=True)
    arguments = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    arguments |= {"features_per_stage": [32, 64, 128, 256, 320, 320], "n_blocks_per_stage": [1, 3, 4, 6, 6, 6]}
    arguments |= {"kernel_sizes": [[3, 3, 3]] * 6, "strides": [[1, 1, 1], *[[2, 2, 2]] * 5], "n_stages": 6}
    checkpoint: dict[str, Any] = {"network_weights": {"encoder.stem.convs.0.conv.weight": torch.zeros(1)}}
    checkpoint |= {"topomae": {"manifest": {"configuration": "3d_fullres"}}, "init_args": {"plans": plans}}
    entry = nnssl_entry(checkpoint, 1)
    assert entry is not None and entry["architecture_plans"]["arch_class_name"] == "ResEncL"
    assert entry["architecture_plans"]["arch_kwargs"] is None
    arguments["strides"] = [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 4]
    entry = nnssl_entry(checkpoint, 1)
    assert entry is not None and entry["architecture_plans"]["arch_class_name"] == RESIDUAL
    assert entry["architecture_plans"]["arch_kwargs"] == arguments
    assert entry["architecture_plans"]["arch_kwargs_requiring_import"] == ["conv_op", "norm_op", "dropout_op", "nonlin"]


def test_what_is_exported_for_stock_nnunet_reads_like_nnssls_and_starts_no_pre_training(tmp_path: Path) -> None:
    """Its images are counted and not listed, so validation cases could be among them."""
    trainer = _beginning(None, residual=True)
    trainer.images_read = ImagesRead(dict.fromkeys(SPLITS[0]["train"], "hash"))
    checkpoint, file = Path(trainer.output_folder) / "checkpoint_final.pth", tmp_path / "weights.pth"
    trainer.save_checkpoint(str(checkpoint))
    command = ["export-weights", str(checkpoint), "--for", "nnUNetTrainer", "--with-decoder", "-o", str(file)]
    assert main(command) == 0
    entry = torch.load(file, weights_only=True)["nnssl_adaptation_plan"]
    assert entry["architecture_plans"]["arch_class_name"] == RESIDUAL
    assert entry["pretrain_plan"] == {
        "configurations": {"3d_fullres": {"patch_size": [16, 24, 32], "spacing": [2, 1, 1]}}
    }
    for fold in (0, 1):
        with pytest.raises(ValueError, match=r"export-weights` has written it .* Start from that checkpoint") as error:
            _beginning(file, fold, residual=True).on_train_start()
        assert "(dataset Dataset007_Tiny, trainer TopoMAEPretrainer, plans_name Plans, " in str(error.value)
    content = torch.load(file, weights_only=True)
    del content["pretraining"]
    torch.save(content, file)
    again = _beginning(file, residual=True)
    with torch.no_grad():
        for parameter in again.network.parameters():
            parameter.zero_()
    again.on_train_start()
    weights, own = trainer.network.state_dict(), again.network.state_dict()
    kept = [name for name in own if name.startswith(("encoder.", "decoder.")) and ".seg_layers." not in name]
    assert kept and all(torch.equal(own[name], weights[name]) for name in kept)


def test_starts_that_do_not_fit_name_both_sides(tmp_path: Path) -> None:
    residual = _beginning(None, residual=True).network
    file = _nnssl(tmp_path / "openmind.pth", residual)
    cases = [
        (file, {}, "nnssl's ResEncL, and the plan's network is another one"),
        (file, {"partner": "unetrpp", "vit": "tiny"}, "this plan pre-trains UNETR"),
        (_nnssl(tmp_path / "two.pth", residual, channels=2), {"residual": True}, "2 channels.*this data set has 1"),
        (tmp_path / "none.pth", {}, "none.pth, which does not exist"),
    ]
    first = "encoder.stem.convs.0.conv.weight"
    contents: dict[str, tuple[str, Any, str]] = {
        "entry": ("nnssl_adaptation_plan", None, "no usable network_weights, or its entry 'nnssl_adaptation_plan'"),
        "network": ("nnssl_adaptation_plan", {"architecture_plans": "ResEncL"}, "with architecture_plans. Download"),
        "weights": ("network_weights", {first: "text"}, "weights.pth is damaged: it has no usable network_weights"),
        # The entry need not say it, and may say what is wrong.
        "unsaid": ("network_weights", {first: torch.zeros(4, 3, 3, 3, 3)}, "3 channels.*this data set has 1"),
    }
    for name, (key, value, message) in contents.items():
        content = {**torch.load(file, weights_only=True), key: value}
        torch.save(content, damaged := tmp_path / f"{name}.pth")
        cases.append((damaged, {"residual": True}, message))
    torch.save({"network_weights": {}}, tmp_path / "stock.pth")
    cases.append((tmp_path / "stock.pth", {}, "no checkpoint of TopoMAEPretrainer .* and none of nnssl"))
    for start, changes, message in cases:
        trainer = _beginning(None, **changes)
        trainer.given_weights = start
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            trainer.on_train_start()


def _keys(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    own = [(*above, key) for key in values if key not in ("topomae", "continue_training")]
    return own + [key for path in own if isinstance(below := values[path[-1]], dict) for key in _keys(below, path)]


def _without(plans: dict[str, Any], *paths: tuple[str, ...]) -> dict[str, Any]:
    changed = deepcopy(plans)
    for path in paths:
        table = changed
        for key in path[:-1]:
            table = table.get(key, {})  # a key above it is gone as well
        table.pop(path[-1], None)
    return changed


# The only keys of a plan that these trainings do without: they decide how images were preprocessed, or have defaults.
SPARE = {
    "label_manager", "foreground_intensity_properties_per_channel", "preprocessor_name", "use_mask_for_norm",
    "conv_bias", "norm_op_kwargs", "eps", "affine", "dropout_op_kwargs", "nonlin_kwargs", "inplace",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "partner"),
    [(TopoMAEPretrainer, "plan"), (SeededNNUNetTrainer, "plan"), (TopoMAEFusionTrainer, "unetrpp")],
)
def test_every_key_of_a_plan_is_spare_or_missed_in_one_line(kind: Any, partner: str) -> None:
    plans = _plans(partner=partner)
    keys, spare = _keys(plans), SPARE
    if partner == "unetrpp":  # its shape follows from the strides; nothing of nnU-Net's own network is built
        spare = SPARE | {path[-1] for path in keys if "arch_kwargs" in path[:-1]} - {"strides"}
    for path in keys:
        if path[-1] in spare:
            continue
        with pytest.raises(ValueError) as error:
            kind(_without(plans, path), "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))
        message = str(error.value)
        assert re.search(r"[Pp]lans\.json", message) and "\n" not in message, message
        assert any(name in message for name in (path[-1], "configurations", "strides", "features")), message
    assert len(keys) == 40
    _trainer(kind, _without(plans, *(path for path in keys if path[-1] in spare)))


@pytest.mark.parametrize("kind", [TopoMAEPretrainer, SeededNNUNetTrainer])
def test_a_patch_that_the_plans_network_cannot_take_is_refused_at_the_start(kind: Any) -> None:
    plans = _plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 25, 32]
    with pytest.raises(ValueError, match=r"^Plans.json: patch_size = \[16, 25, 32\] must be multiples .*\[8, 8, 8\]"):
        kind(plans, "3d_fullres", 0, DESCRIPTION, torch.device("cpu"))


@pytest.mark.parametrize("command", ["set", "explain", "parameters", "preprocess-unlabeled"])
def test_commands_name_the_plans_file_and_the_key_that_it_lacks(
    command: str, nnunet_env: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = nnunet_env.preprocessed / DATASET
    (folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    plans = _plans()
    needed = {
        "set": ["patch_size", "architecture", "strides"],
        "explain": ["spacing", "median_image_size_in_voxels", "network_class_name", "_kw_requires_import"],
        "parameters": ["strides", "network_class_name", "n_stages", "conv_op"],
        "preprocess-unlabeled": ["image_reader_writer", "resampling_fn_data", "use_mask_for_norm"],
    }[command]
    more = {"set": ["--set", "batch_size=3", "--name", "New"], "explain": ["--explain"]}.get(command, [])
    for key in needed:
        paths = [path for path in _keys(plans) if path[-1] == key]
        (folder / "Plans.json").write_text(json.dumps(_without(plans, *paths)))
        name = "plan" if more else command
        assert main([name, "-d", "7", "-p", "Plans", "-c", "3d_fullres", *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {folder / 'Plans.json'}") and key in error and error.count("\n") == 1
