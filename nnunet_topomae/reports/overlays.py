"""Pictures of cases for a benchmark's report, only where asked for: images leave the hospital with the page."""

import numpy as np
from numpy import ndarray

from nnunet_topomae.reports.case_files import CaseFiles
from nnunet_topomae.reports.page import Picture
from nnunet_topomae.reports.plots import WINDOW_HU, data_uri, overlay_figure


def case_picture(files: CaseFiles, title: str) -> Picture:
    """Truth, baseline and recipe over the image, in three planes.

    Args:
        files: of the case.
        title: of the recipe.
    """
    import SimpleITK

    truth = SimpleITK.ReadImage(files.truth)
    grey = _to_window(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(files.image)).astype(np.float32))
    predictions = {
        name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file)) for name, file in files.predictions.items()
    }
    spacing = truth.GetSpacing()[::-1]
    figure = overlay_figure(grey, SimpleITK.GetArrayFromImage(truth), predictions, spacing, files.labels)
    return Picture(
        data_uri(figure, "png"),
        f"Slices of {files.case} in three planes with the structures of truth and predictions in colour",
        f"{files.case}: the {files.rank} case of {title}, mean Dice {files.dice:.3f}. White lines: the truth's border.",
    )


def _to_window(image: ndarray) -> ndarray:
    """Any intensities, their middle 98 % spread over the window of the overlay."""
    low, high = np.percentile(image, (1, 99))
    share = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    windowed: ndarray = WINDOW_HU[0] + share * (WINDOW_HU[1] - WINDOW_HU[0])
    return windowed
