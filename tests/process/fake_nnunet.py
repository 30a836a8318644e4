"""Stand-ins for nnU-Net's commands, which do in milliseconds what the benchmark sees of the real ones.

Started as `nnUNetv2_...`; the file `behaviour.json` beside it says how a trainer misbehaves.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def behaviour():
    return json.loads((Path(__file__).parent / "behaviour.json").read_text())


def folders(dataset):
    raw, preprocessed, results = (Path(os.environ[f"nnUNet_{n}"]) for n in ("raw", "preprocessed", "results"))
    name = next(path.name for path in raw.iterdir() if path.name.startswith(f"Dataset{int(dataset):03d}"))
    return raw / name, preprocessed / name, results / name


def plan_and_preprocess(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("-d")
    parser.add_argument("-pl")
    args, _ = parser.parse_known_args(arguments)
    raw, preprocessed, _ = folders(args.d)
    preprocessed.mkdir(parents=True)
    name = {"ExperimentPlanner": "nnUNetPlans", "TopoMAEPlanner": "TopoMAEPlans"}[args.pl]
    configuration = {
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "architecture": {"arch_kwargs": {"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]}},
    }
    (preprocessed / f"{name}.json").write_text(
        json.dumps({"plans_name": name, "configurations": {"3d_fullres": configuration}})
    )
    shutil.copyfile(raw / "dataset.json", preprocessed / "dataset.json")
    # As of a data set with folds of its own: making them takes seconds to import.
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (raw / "labelsTr").iterdir())
    splits = [{"val": cases[fold::5], "train": sorted({*cases} - {*cases[fold::5]})} for fold in range(5)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    shutil.copytree(raw / "labelsTr", preprocessed / "gt_segmentations")


def train(arguments):
    parser = argparse.ArgumentParser()
    for name in ("dataset", "configuration", "fold"):
        parser.add_argument(name)
    for name in ("-tr", "-p", "-device"):
        parser.add_argument(name)
    parser.add_argument("--c", action="store_true")
    args = parser.parse_args(arguments)
    _, preprocessed, results = folders(args.dataset)
    plans = json.loads((preprocessed / f"{args.p}.json").read_text())
    section = plans["configurations"][args.configuration]["topomae"]
    role = "pretraining" if args.tr == "TopoMAEPretrainer" else "finetuning"
    if args.tr == "TopoMAEFusionTrainer" and section[role].get("pretrained") != "scratch":
        pretrained = results / f"TopoMAEPretrainer__{args.p}__{args.configuration}" / f"fold_{args.fold}"
        assert (pretrained / "checkpoint_final.pth").is_file()
    folder = results / f"{args.tr}__{args.p}__{args.configuration}" / f"fold_{args.fold}"
    folder.mkdir(parents=True, exist_ok=True)
    misbehaviour = behaviour().get(args.tr, {})
    answer_signals(folder, bool(misbehaviour.get("hangs")))
    with (folder / "starts.txt").open("a") as file:
        file.write(f"{'--c' if args.c else 'anew'}\n")
    if misbehaviour.get("fails"):
        sys.exit("out of memory")
    if misbehaviour.get("worker"):
        subprocess.Popen(["sleep", "300"], start_new_session=True)  # like a data worker that outlives its parent
    facts = {"parameters": 12, "macs": 2.5e9 if role == "finetuning" else 7.5e9}
    (folder / "training.json").write_text(json.dumps(facts))
    record = folder / "metrics.jsonl"
    done = len(record.read_text().splitlines()) if args.c else 0
    for epoch in range(done, section[role]["epochs"]):
        time.sleep(misbehaviour.get("seconds", 0.0))
        while epoch == 1 and "until" in misbehaviour and not Path(misbehaviour["until"]).exists():
            time.sleep(0.05)
        with record.open("a") as file:
            terms = {"loss": 1 / (epoch + 1)}
            taken = {"epoch": epoch, "seconds": misbehaviour.get("recorded", 1.5)}
            file.write(json.dumps({**taken, "train": terms, "validation": terms}) + "\n")
        checkpoint(folder / "checkpoint_latest.pth")
    if misbehaviour.get("broken_once") and not args.c:
        (folder / "checkpoint_latest.pth").write_bytes(b"PK half a checkpoint")
    checkpoint(folder / "checkpoint_final.pth")
    (folder / "validation").mkdir()
    (folder / "validation" / "summary.json").write_text("{}")
    if role == "finetuning":
        fold = json.loads((preprocessed / "splits_final.json").read_text())[int(args.fold)]
        truths = [preprocessed / "gt_segmentations" / f"{case}.nii.gz" for case in fold["val"]]
        shift_labels(truths, folder / "validation", args.tr, section["finetuning"]["seed"])


def answer_signals(folder, hangs):
    """As our trainers do after a signal, which takes them a moment."""

    def save(number, frame):
        time.sleep(0.3)
        (folder / "saved.txt").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if hangs else save)


def checkpoint(path):
    shutil.copyfile(Path(__file__).parent / "checkpoint.pth", path)


def shift_labels(truths, target, trainer, seed):
    """The truth with a shift that depends on trainer, seed and case, so that recipes differ."""
    import numpy as np
    import SimpleITK

    for path in truths:
        truth = SimpleITK.ReadImage(path)
        number = int("".join(filter(str.isdigit, path.name)))
        generator = np.random.default_rng([seed, number, len(trainer)])
        shift = int(generator.integers(0, 2)) + (1 if trainer == "UNETRPPTrainer" else 0)
        array = np.roll(SimpleITK.GetArrayFromImage(truth), shift, axis=2)
        image = SimpleITK.GetImageFromArray(array)
        image.CopyInformation(truth)
        SimpleITK.WriteImage(image, target / path.name)


def predict(arguments):
    parser = argparse.ArgumentParser()
    for name in ("-i", "-o", "-d", "-c", "-tr", "-p", "-f", "-npp", "-nps", "-device"):
        parser.add_argument(name, required=True)
    parser.add_argument("--disable_tta", action="store_true")
    args = parser.parse_args(arguments)
    raw, _, results = folders(args.d)
    model = results / f"{args.tr}__{args.p}__{args.c}" / f"fold_{args.f}"
    assert (model / "checkpoint_final.pth").is_file()
    sys.stdout.write(f"{os.environ.get('GREETING')}\n")
    target = Path(args.o)
    target.mkdir()
    if behaviour().get("predict", {}).get("fails"):
        (target / "half.nii.gz").touch()
        sys.stdout.write("\r10 %\r20 %\rout of memory in prediction\n")
        sys.exit(1)
    truths = [raw / "labelsTs" / path.name.replace("_0000", "") for path in sorted(Path(args.i).iterdir())]
    shift_labels(truths, target, args.tr, 0)


COMMANDS = {
    "nnUNetv2_plan_and_preprocess": plan_and_preprocess,
    "nnUNetv2_train": train,
    "nnUNetv2_predict": predict,
}

if __name__ == "__main__":
    COMMANDS[Path(sys.argv[0]).name](sys.argv[1:])
