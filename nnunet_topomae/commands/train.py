"""`nnunet-topomae train`: nnU-Net's training in processes that torchrun has started, on one machine or several."""

import argparse
import os
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments: those of `nnUNetv2_train` that concern training."""
    parser.add_argument("dataset", metavar="DATASET", help="number or name of the data set")
    parser.add_argument("configuration", metavar="CONFIGURATION", help="such as 3d_fullres")
    parser.add_argument("fold", metavar="FOLD", help="number of the fold, or all")
    parser.add_argument("-tr", metavar="TRAINER", required=True, help="trainer, such as TopoMAEPretrainer")
    parser.add_argument("-p", metavar="PLANS", default="nnUNetPlans", help="name of the plans (default: nnUNetPlans)")
    parser.add_argument("-pretrained_weights", metavar="FILE", help="checkpoint to start from")
    parser.add_argument("-device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--c", action="store_true", help="continue the training")
    parser.add_argument("--npz", action="store_true", help="also write the probabilities of the final validation")


def run(args: argparse.Namespace) -> int:
    """Train, with the other processes if torchrun has started several."""
    import torch
    from torch import distributed

    together = int(os.environ.get("WORLD_SIZE", "1")) > 1
    device = torch.device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if together:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        _train(args, device)
    except RuntimeError as error:
        if not together:
            raise
        rank, count = distributed.get_rank(), distributed.get_world_size()
        first_line = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise RuntimeError(
            f"process {rank} of {count} ended: {first_line}. Where this says that a connection was closed or timed "
            "out, another process has ended before, and its message is the reason. Checkpoints on disk are untouched: "
            "continue with --c."
        ) from error
    finally:
        if together:
            distributed.destroy_process_group()
    return 0


def _train(args: argparse.Namespace, device: Any) -> None:
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    if args.fold != "all" and not args.fold.isdecimal():
        raise ValueError(f"fold {args.fold!r} must be a number such as 0, or all")
    fold: Any = args.fold if args.fold == "all" else int(args.fold)
    trainer: Any = get_trainer_from_args(args.dataset, args.configuration, fold, args.tr, args.p, args.c, device)
    maybe_load_checkpoint(trainer, args.c, False, args.pretrained_weights)
    trainer.run_training()
    trainer.perform_actual_validation(args.npz)
