"""`nnunet-topomae export-weights`: pre-trained weights of nnU-Net's own network, for stock nnU-Net."""

import argparse
from pathlib import Path

STOCK_TRAINER = "nnUNetTrainer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint_final.pth of a pre-training")
    parser.add_argument(
        "--for",
        dest="trainer",
        required=True,
        choices=[STOCK_TRAINER],
        help="trainer that will load the weights; its variants that keep the plan's network can load them, too",
    )
    parser.add_argument(
        "--with-decoder",
        action="store_true",
        help="write the pre-trained decoder, too; otherwise the decoder has nnU-Net's initial weights, from which SGD "
        "learns faster",
    )
    parser.add_argument("-o", type=Path, metavar="FILE", help="default: next to the checkpoint, for_nnUNetTrainer.pth")


def run(args: argparse.Namespace) -> int:
    """Write the file, and say how to use it."""
    from nnunet_topomae.training.exports import export_for_stock

    target = args.o or args.checkpoint.with_name(f"for_{args.trainer}.pth")
    if target.resolve() == args.checkpoint.resolve():
        raise ValueError(f"{target} is the checkpoint itself: name another file with -o")
    origin = export_for_stock(args.checkpoint, target, args.with_decoder)
    print(
        f"{target} written. Where nnU-Net is installed, with this package or without it:\n"
        f"nnUNetv2_train {origin['dataset']} {origin['configuration']} {origin['fold']} -p "
        f"{origin['plans_name']} -tr {args.trainer} -pretrained_weights {target}\n"
        f"Stock nnU-Net does not check which cases the weights have seen. These have seen, in fold {origin['fold']}: "
        f"{origin['images']}. Use them for that fold only, or for other data."
    )
    if args.with_decoder and not origin["decoder_trained"]:
        print(
            "No loss of this pre-training has trained the decoder: the one in the file has nnU-Net's initial weights."
        )
    return 0
