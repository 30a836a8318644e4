"""Write the tables of docs/recipe.md from studies/recipe.json: `python docs/make_recipe_tables.py`."""

import json
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE = DOCS / "recipe.md"
RESULTS = DOCS.parent / "studies" / "recipe.json"
MINI, PET = "Dataset904_HippocampusMini", "Dataset123_STSPETCT"
COARSE, COARSE_PET = "Dataset908_Hippocampus1601.5mm", "Dataset909_STSPETCT5.5mm"
FINAL = "dropout=0,ends=unit,heads=unit"
BEST = f"{FINAL},lr=3e-3"
PET_START = f"fusion,{BEST},pretrain=320,pretrain_vit=small"
HIP_START = f"fusion,{BEST},pretrain=160,pretrain_vit=small"
OF_BEST = "**no dropout, unit gain, heads with unit gain, rate 3e-3**"
SGD = "lr=1e-2,optimiser=sgd,decay=3e-5,clip=12,ds=nnunet"
SGD_WORDS = "... SGD as nnU-Net: Nesterov 0.99, rate 1e-2, decay 3e-5, clipping at 12, nnU-Net's deep supervision"

# A table is found on the page by the first cell of its header. Its rows: text, data, steps, variant.
Row = tuple[str, str, int, str]
TABLES: dict[str, list[Row]] = {
    "hippocampus, 160 steps": [
        ("start", MINI, 160, "default"),
        ("segmentation heads with a standard deviation of 0.02, as before", MINI, 160, "heads=small"),
        ("no dropout", MINI, 160, "dropout=0"),
        ("rate 3e-3", MINI, 160, "lr=3e-3"),
        ("residual ends with unit gain", MINI, 160, "ends=unit"),
        ("no dropout, rate 3e-3", MINI, 160, "dropout=0,lr=3e-3"),
        ("no dropout, unit gain", MINI, 160, "dropout=0,ends=unit"),
        ("... and warm-up of 16 steps", MINI, 160, "dropout=0,ends=unit,warmup=16"),
        ("... and clipping at 12 instead of 1", MINI, 160, "dropout=0,ends=unit,clip=12"),
        ("... and attention starting at 1 instead of 0.1 (`gamma`)", MINI, 160, "dropout=0,ends=unit,gamma=1.0"),
        ("... and AdamW's beta2 0.95 instead of 0.999", MINI, 160, "dropout=0,ends=unit,beta2=0.95"),
        ("no dropout, unit gain, rate 3e-3", MINI, 160, "dropout=0,ends=unit,lr=3e-3"),
        (
            "... with Muon (`torch.optim.Muon`) for matrices",
            MINI,
            160,
            "dropout=0,ends=unit,optimiser=muon,lr=3e-3",
        ),
        (OF_BEST, MINI, 160, BEST),
        ("... validated with the moving average of weights, decay 0.99", MINI, 160, f"{BEST},ema=0.99"),
        ("... without deep supervision", MINI, 160, f"{BEST},ds=none"),
        ("... nnU-Net's weights of deep supervision (2/3, 1/3, 0)", MINI, 160, f"{BEST},ds=nnunet"),
        ("... without weight decay", MINI, 160, f"{BEST},decay=0"),
        (SGD_WORDS, MINI, 160, f"{FINAL},{SGD}"),
        ("the bold row, 80 steps", MINI, 80, BEST),
        ("the bold row, 320 steps", MINI, 320, BEST),
        ("stock nnU-Net, 80 steps", MINI, 80, "nnunet"),
        ("stock nnU-Net, 160 steps", MINI, 160, "nnunet"),
    ],
    "PET/CT of thighs, 160 steps": [
        ("start, but heads with 0.02", PET, 160, "heads=small"),
        ("no dropout, unit gain, heads with unit gain, rate 3e-3", PET, 160, BEST),
    ],
    "hippocampus at 1.5 mm, 1,000 steps": [
        (OF_BEST, COARSE, 1000, BEST),
        ("... rate 3e-4, the plan's default", COARSE, 1000, f"{FINAL},lr=3e-4"),
        ("... rate 1.5e-3", COARSE, 1000, f"{FINAL},lr=1.5e-3"),
        ("... rate 6e-3", COARSE, 1000, f"{FINAL},lr=6e-3"),
        ("... warm-up of 100 steps", COARSE, 1000, f"{BEST},warmup=100"),
        (
            "... segmentation heads with a standard deviation of 0.02",
            COARSE,
            1000,
            "dropout=0,ends=unit,heads=small,lr=3e-3",
        ),
        ("... segmentation heads as in nnU-Net", COARSE, 1000, "dropout=0,ends=unit,heads=kaiming,lr=3e-3"),
        ("... residual ends with 0.02", COARSE, 1000, "dropout=0,ends=small,heads=unit,lr=3e-3"),
        ("... attention starting at 1 instead of 0.1 (`gamma`)", COARSE, 1000, f"{BEST},gamma=1"),
        ("... attention starting at 1e-6, as published", COARSE, 1000, f"{BEST},gamma=1e-6"),
        ("... published dropout", COARSE, 1000, "dropout=1,ends=unit,heads=unit,lr=3e-3"),
        ("... clipping at 12 instead of 1", COARSE, 1000, f"{BEST},clip=12"),
        ("... without weight decay", COARSE, 1000, f"{BEST},decay=0"),
        ("... AdamW's beta2 0.95 instead of 0.999", COARSE, 1000, f"{BEST},beta2=0.95"),
        ("... nnU-Net's weights of deep supervision (2/3, 1/3, 0)", COARSE, 1000, f"{BEST},ds=nnunet"),
        ("... without deep supervision", COARSE, 1000, f"{BEST},ds=none"),
        ("... validated with the moving average of weights, decay 0.99", COARSE, 1000, f"{BEST},ema=0.99"),
        ("... with Muon (`torch.optim.Muon`) for matrices", COARSE, 1000, f"{BEST},optimiser=muon"),
        (SGD_WORDS, COARSE, 1000, f"{FINAL},{SGD}"),
        ("... no augmentation", f"{COARSE}, augmentation none", 1000, BEST),
        ("... mirroring too", f"{COARSE}, augmentation mirrored", 1000, BEST),
        (
            "all as before: start, but heads with 0.02",
            COARSE,
            1000,
            "heads=small",
        ),
        ("fusion, from scratch", COARSE, 1000, f"fusion,{BEST}"),
        ("... without drop path", COARSE, 1000, f"fusion,{BEST},drop_path=0"),
        (
            "... after 1,000 steps of co-pre-training (reconstruction and its consistency only)",
            COARSE,
            1000,
            f"fusion,{BEST},pretrain=1000",
        ),
        (
            "... the same; pre-trained weights learn at a third of the rate",
            COARSE,
            1000,
            f"fusion,{BEST},pretrain=1000,slow=0.333",
        ),
        ("stock nnU-Net", COARSE, 1000, "nnunet"),
    ],
    "PET/CT of thighs at 5.5 mm, 1,000 steps": [
        (OF_BEST, COARSE_PET, 1000, BEST),
        ("... rate 3e-4, the plan's default", COARSE_PET, 1000, f"{FINAL},lr=3e-4"),
        ("... rate 1.5e-3", COARSE_PET, 1000, f"{FINAL},lr=1.5e-3"),
        (
            "... segmentation heads with a standard deviation of 0.02",
            COARSE_PET,
            1000,
            "dropout=0,ends=unit,heads=small,lr=3e-3",
        ),
        ("... published dropout", COARSE_PET, 1000, "dropout=1,ends=unit,heads=unit,lr=3e-3"),
        ("... clipping at 12 instead of 1", COARSE_PET, 1000, f"{BEST},clip=12"),
        ("all as before: start, but heads with 0.02", COARSE_PET, 1000, "heads=small"),
        ("fusion, from scratch", COARSE_PET, 1000, f"fusion,{BEST}"),
        (
            "... after 1,000 steps of co-pre-training (reconstruction and its consistency only)",
            COARSE_PET,
            1000,
            f"fusion,{BEST},pretrain=1000,pretrain_vit=small",
        ),
        ("stock nnU-Net", COARSE_PET, 1000, "nnunet"),
    ],
    "fusion at 5.5 mm (PET/CT) and 1.5 mm (hippocampus), 160 steps": [
        ("PET/CT, from scratch", COARSE_PET, 160, f"fusion,{BEST}"),
        ("PET/CT, after 320 steps of co-pre-training", COARSE_PET, 160, PET_START),
        ("... encoders only, decoder fresh", COARSE_PET, 160, f"{PET_START},pretrain_parts=encoder"),
        ("... heads scaled, logits with 2.3", COARSE_PET, 160, f"{PET_START},first_std=2.3"),
        ("... heads scaled, logits with 1", COARSE_PET, 160, f"{PET_START},first_std=1"),
        ("hippocampus, from scratch", COARSE, 160, f"fusion,{BEST}"),
        ("hippocampus, after 160 steps of co-pre-training", COARSE, 160, HIP_START),
        ("... encoders only, decoder fresh", COARSE, 160, f"{HIP_START},pretrain_parts=encoder"),
        ("... heads scaled, logits with 1", COARSE, 160, f"{HIP_START},first_std=1"),
    ],
}


def cells(results: list[dict[str, Any]], row: Row) -> str:
    """A row: Dice of each seed, means of the loss and the median of the seconds."""
    text, data, steps, variant = row
    key = {"data": data, "steps": steps, "variant": variant}
    of = sorted((result for result in results if key.items() <= result.items()), key=lambda result: result["seed"])
    if not of:
        raise LookupError(f"{RESULTS} has no result of {key}")
    dice = ", ".join("0" if result["dice"] == 0 else f"{result['dice']:.3f}" for result in of)
    loss = statistics.mean(result["loss_last_20"] for result in of)
    seconds = statistics.median(result["cpu_seconds_a_step"] for result in of)
    return f"| {text} | {dice} | {loss:+.3f} | {seconds:.2f} |"


def page() -> str:
    """The page with its tables made anew; everything else stays."""
    results = json.loads(RESULTS.read_text())
    lines = PAGE.read_text().splitlines()
    for name, rows in TABLES.items():
        start = next(number for number, line in enumerate(lines) if line.startswith(f"| {name} | Dice")) + 2
        end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
        lines[start:end] = [cells(results, row) for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
