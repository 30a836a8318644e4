"""Pages with all slices of a case in three planes and in 3D, with NiiVue, only where asked for.

NiiVue (BSD 2-Clause, 2.3 MB) is not part of this package: the user gives the file, and every page holds a copy of it.
A page loads nothing, so it can be opened from a folder, and holds the image: it is as confidential as that.
"""

import base64
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_topomae.reports.case_files import CaseFiles
from nnunet_topomae.reports.overlays import label_colours
from nnunet_topomae.reports.volumes import Window, choose_window, describe_orientation, find_tilt, read_image

SCRIPT_FILE = "viewer.js"


def read_niivue(file: Path) -> str:
    """NiiVue's program.

    Args:
        file: `niivue.umd.js`.

    Raises:
        FileNotFoundError: it does not exist; says where to get it.
        ValueError: it is another file.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist. niivue.umd.js is in the folder dist of the npm package @niivue/niivue, as "
            "https://unpkg.com/@niivue/niivue@0.69.0/dist/niivue.umd.js"
        )
    text = file.read_text(encoding="utf-8", errors="replace")
    if ".niivue={}" not in text[:1000] or "loadFromBase64" not in text:
        raise ValueError(f"{file} is not NiiVue's niivue.umd.js, which defines the global name niivue")
    return text


def write_viewer(files: CaseFiles, title: str, niivue: str, folder: Path) -> Path:
    """Write the page of one case.

    Args:
        files: of the case.
        title: of the recipe.
        niivue: text of NiiVue's program.
        folder: where to.

    Returns:
        the page.
    """
    import SimpleITK

    from nnunet_topomae.files import write_text
    from nnunet_topomae.reports.page import render, script

    layers = {"Truth": files.truth, **files.predictions}
    image = read_image(files.image)
    values = SimpleITK.GetArrayViewFromImage(image)
    window = choose_window(values, files.channel, files.labels, files.dataset, files.ct_window)
    data = {
        "image": _encode_image(image, window),
        "layers": [{"name": name, "base64": _encode_labels(file)} for name, file in layers.items()],
        "colours": _label_colours(files.labels),
    }
    own = Path(__file__).with_name("templates").joinpath(SCRIPT_FILE).read_text(encoding="utf-8")
    scripts = [script(text) for text in (niivue, own.replace('"DATA"', json.dumps(data).replace("<", "\\u003c")))]
    page = render(
        "viewer.html.j2",
        title=f"{files.case}: the {files.rank} case of {title}",
        dice=files.dice,
        layers=list(layers),
        window=window.name,
        orientation=describe_orientation(find_tilt(image)),
        structures=list(label_colours(files.labels)),
        scripts=[text for text, _ in scripts],
        script_hashes=[digest for _, digest in scripts],
    )
    name = re.sub(r"[^\w.+-]", "_", f"{files.dataset}_{files.recipe}_{files.rank}_{files.case}")
    target = folder / f"{name}.html"
    write_text(target, page)
    return target


def _label_colours(labels: Mapping[str, int]) -> dict[str, Sequence[Any]]:
    """NiiVue's colour map of labels, the background first and clear."""
    chosen = [(0, 0, 0), *(bytes.fromhex(colour.removeprefix("#")) for _, _, colour in label_colours(labels))]
    return {
        "R": [colour[0] for colour in chosen],
        "G": [colour[1] for colour in chosen],
        "B": [colour[2] for colour in chosen],
        "A": [0, *[255] * len(labels)],
        "I": [0, *labels.values()],
        "labels": ["", *labels],
    }


def _encode_image(image: Any, window: Window) -> str:
    """The window's intensities as bytes: smaller, and without a window to choose."""
    import SimpleITK

    scaled = SimpleITK.IntensityWindowing(
        SimpleITK.Cast(image, SimpleITK.sitkFloat32), window.low, window.high, 0.0, 255.0
    )
    return _encode(SimpleITK.Cast(scaled, SimpleITK.sitkUInt8))


def _encode_labels(file: Path) -> str:
    import SimpleITK

    return _encode(SimpleITK.Cast(read_image(file), SimpleITK.sitkUInt8))


def _encode(image: Any) -> str:
    """A compressed NIfTI file in base64."""
    import SimpleITK

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "volume.nii.gz"
        SimpleITK.WriteImage(image, file)
        return base64.b64encode(file.read_bytes()).decode()
