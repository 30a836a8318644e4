"""Images without labels: found, preprocessed like the data set, kept apart from it, and tied to the plan.

They lie in ``<data_identifier>_unlabeled`` next to the preprocessed data set, so that they enter neither splits nor
validation and the next ``nnUNetv2_preprocess`` does not delete them. A manifest there says from which files every image
was made, under which plan, and which labelled case it equals, if any.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_topomae.datasets.dicom import find_series, read_series
from nnunet_topomae.files import hash_file, hash_json, read_json, write_json

RAW_FOLDER = "imagesUn"
SUFFIX = "_unlabeled"
MANIFEST = "unlabeled.json"
# What decides how an image is preprocessed; the patch size, for example, does not.
_PLAN_KEYS = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
_CONFIGURATION_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
)
# What a plan must have for preprocessing; the statistics of intensities have another name in old plans.
NEEDED_KEYS = (*_PLAN_KEYS[:2], *_CONFIGURATION_KEYS)
_PARTS = (".b2nd", "_seg.b2nd", ".pkl")


@dataclass(frozen=True)
class UnlabeledPreprocessing:
    """What is needed to preprocess any image of one configuration.

    Attributes:
        plans: content of the plans file.
        configuration: name of the configuration.
        dataset_json: content of dataset.json.
        data_folder: the preprocessed data set; unlabelled images go to the folder next to it.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    data_folder: Path

    @property
    def folder(self) -> Path:
        """Where unlabelled images go."""
        return unlabeled_folder(self.data_folder)

    @property
    def preprocessing(self) -> str:
        """Hash of what decides preprocessing."""
        return preprocessing_hash(self.plans, self.configuration)


def unlabeled_folder(data_folder: Path) -> Path:
    """The folder of unlabelled images that belongs to a folder of preprocessed data."""
    return data_folder.with_name(data_folder.name + SUFFIX)


def preprocessing_hash(plans: Mapping[str, Any], configuration: str) -> str:
    """SHA-256 of everything in a plan that decides how an image is preprocessed.

    Args:
        plans: content of the plans file.
        configuration: name of the configuration.
    """
    chosen = PlansManager(json.loads(json.dumps(plans))).get_configuration(configuration).configuration
    return hash_json(
        {
            **{key: plans.get(key) for key in _PLAN_KEYS},
            **{key: chosen.get(key) for key in _CONFIGURATION_KEYS},
        }
    )


def read_manifest(data_folder: Path, plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """Manifest entries of the unlabelled images by case; empty if there are none.

    Args:
        data_folder: the preprocessed data set.
        plans: content of the plans file.
        configuration: name of the configuration.

    Raises:
        ValueError: they were preprocessed for another plan; names the command that renews them.
    """
    file = unlabeled_folder(data_folder) / MANIFEST
    if not file.is_file():
        return {}
    manifest: dict[str, Any] = read_json(file)
    if manifest["preprocessing"] != preprocessing_hash(plans, configuration):
        command = f"-d {plans['dataset_name']} -p {plans['plans_name']} -c {configuration}"
        raise ValueError(
            f"the unlabelled images in {file.parent} were preprocessed for another plan (spacing, normalisation or "
            f"resampling differ). Renew them with\n    nnunet-topomae preprocess-unlabeled {command}\n"
            "or leave them out with pretraining.unlabeled = false."
        )
    cases: dict[str, Any] = manifest["cases"]
    return cases


def find_images(source: Path, file_ending: str, channels: int) -> dict[str, list[Path]]:
    """Image files of every case of a folder, in the order of the channels.

    A case is either files CASE_0000, CASE_0001, ... with the data set's file ending, or, for one channel, a
    sub-folder CASE of DICOM slices.

    Args:
        source: the folder.
        file_ending: the data set's, such as `.nii.gz`.
        channels: number of channels of the data set.

    Returns:
        Files by case, one per channel; the sub-folder stands for a case in DICOM format.

    Raises:
        FileNotFoundError: no such folder, or nothing in it.
        ValueError: a file without channel number, a missing channel, or a sub-folder that is not one DICOM series.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder. Put unlabelled images there, or name another with -i.")
    cases: dict[str, dict[int, Path]] = {}
    for file in sorted(source.glob(f"*{file_ending}")):
        named = re.fullmatch(r"(.+)_(\d{4})", file.name.removesuffix(file_ending))
        if named is None:
            raise ValueError(f"{file} has no channel number; name it CASE_0000{file_ending}")
        cases.setdefault(named[1], {})[int(named[2])] = file
    for case, files in cases.items():
        if sorted(files) != list(range(channels)):
            raise ValueError(
                f"case {case} of {source} has the channels {sorted(files)}, the data set has {list(range(channels))}"
            )
    found = {case: [files[channel] for channel in range(channels)] for case, files in cases.items()}
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if channels != 1 or folder.name in found:
            raise ValueError(f"{folder}: a DICOM folder must be a case of its own with one channel, not {channels}")
        found[folder.name] = find_series(folder)
    if not found:
        raise FileNotFoundError(f"{source} holds neither *_0000{file_ending} files nor DICOM folders")
    return found


def preprocess_unlabeled(
    task: UnlabeledPreprocessing, images: Mapping[str, Sequence[Path]], processes: int = 1
) -> Iterator[str]:
    """Preprocess what is new or has changed; yields every case when it is done or found done.

    Args:
        task: the plan and the data set.
        images: files by case, from :func:`find_images`.
        processes: how many cases at a time.

    Raises:
        ValueError: a case is named like a labelled one, or an image cannot be used; names the file.
    """
    dataset = infer_dataset_class(str(task.data_folder))
    labelled = dataset.get_identifiers(str(task.data_folder))
    if taken := sorted(set(images) & set(labelled)):
        raise ValueError(f"unlabelled cases are named like labelled ones: {', '.join(taken[:5])}. Rename their files.")
    manifest = _open_manifest(task)
    contents = {_content(task.data_folder, case, dataset): case for case in labelled}
    sources = {case: [hash_file(file) for file in files] for case, files in images.items()}
    entries = manifest["cases"]
    waiting = []
    for case, hashes in sources.items():
        done = entries.get(case, {}).get("source") == hashes
        if done and all((task.folder / f"{case}{part}").is_file() for part in _PARTS):
            yield case
        else:
            waiting.append(case)
    for case, content in _run(task, {case: images[case] for case in waiting}, processes):
        entries[case] = {"source": sources[case], "content": content, "twin": contents.get(content)}
        write_json(task.folder / MANIFEST, manifest)
        yield case


def _run(
    task: UnlabeledPreprocessing, images: Mapping[str, Sequence[Path]], processes: int
) -> Iterator[tuple[str, str]]:
    work = partial(_preprocess_case, task)
    if processes <= 1:
        yield from ((case, work(case, files)) for case, files in images.items())
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, case, files): case for case, files in images.items()}
        for future in as_completed(running):
            yield running[future], future.result()


def _preprocess_case(task: UnlabeledPreprocessing, case: str, files: Sequence[Path]) -> str:
    """Write one case under a temporary name, check it, rename it; returns the hash of its content."""
    manager = PlansManager(json.loads(json.dumps(task.plans)))
    configuration = manager.get_configuration(task.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    with tempfile.TemporaryDirectory(dir=task.folder, prefix=".new-") as temporary:
        readable = _as_readable(files, task.dataset_json["file_ending"], Path(temporary))
        try:
            image, _ = manager.image_reader_writer_class().read_images(readable)
            problem = _problem(image)
            if problem is None:
                output = str(Path(temporary) / case)
                preprocessor.run_case_save(output, readable, None, manager, configuration, task.dataset_json)
        except Exception as error:
            raise ValueError(f"{files[0]} cannot be preprocessed: {error}") from error
        if problem is not None:
            raise ValueError(f"{files[0]} {problem}. Repair or remove it.")
        content = _content(Path(temporary), case, nnUNetDatasetBlosc2)
        for part in _PARTS:
            (Path(temporary) / f"{case}{part}").replace(task.folder / f"{case}{part}")
    return content


def _problem(image: np.ndarray) -> str | None:
    """Why an image (C, D, H, W) cannot be used."""
    if not np.isfinite(image).all():
        return "holds NaN or infinite voxels"
    if min(image.shape[1:]) < 2:
        return f"is not a 3D image but of shape {image.shape[1:]}"
    return None


def _content(folder: Path, case: str, dataset: type[nnUNetBaseDataset]) -> str:
    """Hash of a preprocessed case's voxels."""
    return _hash_array(np.asarray(dataset(str(folder), [case]).load_case(case)[0][:]))


def _hash_array(values: np.ndarray) -> str:
    return hashlib.sha256(str(values.shape).encode() + np.ascontiguousarray(values, np.float32).tobytes()).hexdigest()


def _open_manifest(task: UnlabeledPreprocessing) -> dict[str, Any]:
    """The manifest of an earlier run for the same preprocessing, else an empty one."""
    task.folder.mkdir(parents=True, exist_ok=True)
    file = task.folder / MANIFEST
    manifest: dict[str, Any] = read_json(file) if file.is_file() else {}
    if manifest.get("preprocessing") != task.preprocessing:
        for case, part in product(manifest.get("cases", {}), _PARTS):
            (task.folder / f"{case}{part}").unlink(missing_ok=True)
        manifest = {"preprocessing": task.preprocessing, "plans": task.plans["plans_name"], "cases": {}}
        write_json(file, manifest)
    return manifest


def _as_readable(files: Sequence[Path], file_ending: str, folder: Path) -> list[str]:
    """The files as the data set's reader takes them: a DICOM series becomes one image."""
    if all(file.name.endswith(file_ending) for file in files):
        return [str(file) for file in files]
    image = folder / f"series{file_ending}"
    SimpleITK.WriteImage(read_series(list(files)), str(image))
    return [str(image)]
