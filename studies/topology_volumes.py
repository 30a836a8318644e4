"""What is measured on: CT-like volumes, what an autoencoder makes of them, and diagrams that hurt."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy import ndarray
from scipy.ndimage import gaussian_filter

from nnunet_topomae.topology import persistence_diagrams

KINDS = ("late", "paste", "mid", "early", "noisy", "init")
TOKEN = 16
CT_WINDOW = (-175.0, 250.0)


def phantom(shape: tuple[int, int, int], seed: int = 0) -> ndarray:
    """An abdomen-like crop in [0, 1]: fat, organs, vessels, bones and gas with scanner blur and correlated noise."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, size) for size in shape), indexing="ij")
    grid = np.stack(axes)
    scale = max(shape) / 96
    volume = np.full(shape, 0.3)
    for _ in range(10):
        organ = _blob(grid, generator, (0.15, 0.5)) + 0.15 * _texture(generator, shape, 6 * scale) < 1
        volume[organ] = generator.uniform(0.45, 0.75)
    for _ in range(12):
        volume[_vessel(shape, generator, scale)] = generator.uniform(0.6, 0.95)
    for _ in range(3):
        bone = _blob(grid, generator, (0.1, 0.25))
        volume[bone < 1] = (0.8 + 0.25 * _texture(generator, shape, 1.5))[bone < 1]
        volume[(bone < 1) & (bone > 0.6)] = 1.3
    for _ in range(2):
        volume[_blob(grid, generator, (0.05, 0.15)) < 1] = -1.0
    volume[(axes[2] / 1.15) ** 2 + (axes[1] / 0.95) ** 2 > 1] = -1.5
    volume = gaussian_filter(volume, 0.6)
    volume += 0.04 * _texture(generator, shape, 0.7) + 0.02 * _texture(generator, shape, 3.0)
    return np.clip(volume, 0.0, 1.0).astype(np.float32)


def reconstruct(volume: ndarray, kind: str, seed: int = 1) -> ndarray:
    """What an autoencoder returns for ``volume``.

    `init` untrained: noise; `early` very blurred with offsets between tokens; `mid` less so; `late` converged: blurred;
    `paste` converged, with half of the tokens copied from the input; `noisy` the input with noise.
    """
    generator = np.random.default_rng(1000 + seed)
    noise = generator.standard_normal(volume.shape)
    offsets = generator.standard_normal([-(-size // TOKEN) for size in volume.shape])
    for axis, size in enumerate(volume.shape):
        offsets = np.repeat(offsets, TOKEN, axis).take(range(size), axis)
    exact = volume.astype(np.float64)
    late = gaussian_filter(exact, 1.0) + 0.004 * noise
    made = {
        "init": lambda: 0.3 * noise,
        "early": lambda: gaussian_filter(exact, 4.0) + 0.03 * offsets + 0.02 * noise,
        "mid": lambda: gaussian_filter(exact, 2.0) + 0.015 * offsets + 0.01 * noise,
        "late": lambda: late,
        "paste": lambda: np.where(offsets > 0, late, exact),
        "noisy": lambda: exact + 0.02 * noise,
    }
    return made[kind]().astype(np.float32)


def ct_crops(edge: int) -> Iterator[tuple[str, ndarray]]:
    """Centred crops of real CT volumes in [0, 1], where there are any (see TOPOMAE_TEST_DATA in the tests)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    for path in sorted((Path(os.environ.get("TOPOMAE_TEST_DATA", default)) / "unlabeled_ct").glob("*.nii.gz")):
        import SimpleITK

        volume = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).astype(np.float32)
        low = [max(0, (size - edge) // 2) for size in volume.shape]
        crop = volume[tuple(slice(lower, lower + edge) for lower in low)]
        yield path.name.split(".")[0], np.clip((crop - CT_WINDOW[0]) / (CT_WINDOW[1] - CT_WINDOW[0]), 0.0, 1.0)


def h1_pair(size: int) -> tuple[ndarray, ndarray]:
    """H1 diagrams of a phantom and its converged reconstruction."""
    target = phantom((size, size, size))
    return tuple(persistence_diagrams(volume, (1,))[1].points for volume in (target, reconstruct(target, "late")))


def thin(points: ndarray, size: int) -> ndarray:
    """A random part of a diagram."""
    return points[np.random.default_rng(0).permutation(len(points))[:size]]


def pathologies(n: int) -> dict[str, tuple[ndarray, ndarray]]:
    """Diagrams that hurt."""
    generator = np.random.default_rng(0)
    a, b = generator.random(n), generator.random(n)
    first, second = h1_pair(48)
    swapped = [
        np.repeat([[0.9, 0.1], [0.5, 0.2]], [n, n // 2], axis=0),
        np.repeat([[0.9, 0.12], [0.5, 0.21]], [n // 2, n], axis=0),
    ]
    target = phantom((96, 96, 96))
    coarse = [np.round(volume * 63) / 63 for volume in (target, reconstruct(target, "late"))]
    return {
        "copies of one point": (np.tile([[0.9, 0.1]], (n, 1)), np.tile([[0.8, 0.1]], (n + 500, 1))),
        "two swapped clusters": (swapped[0], swapped[1]),
        "swapped clusters, jitter 1e-9": tuple(s + 1e-9 * generator.random(s.shape) for s in swapped),
        "swapped clusters, jitter 1e-4": tuple(s + 1e-4 * generator.random(s.shape) for s in swapped),
        "one vertical line": (np.stack([1 + 0 * a, a], 1), np.stack([1 + 0 * b, b], 1)),
        "one persistence": (np.stack([a + 0.2, a], 1), np.stack([b + 0.2, b], 1)),
        "one midpoint": (np.stack([0.5 + a / 2, 0.5 - a / 2], 1), np.stack([0.5 + b / 2, 0.5 - b / 2], 1)),
        "64 grey levels, 96^3": tuple(persistence_diagrams(volume, (1,))[1].points for volume in coarse),
        "Hounsfield units": (1000 * first - 500, 1000 * second - 500),
        "identical": (first, first),
    }


def _texture(generator: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> ndarray:
    """Smooth noise of unit variance."""
    noise = gaussian_filter(generator.standard_normal(shape), sigma)
    return noise / noise.std()


def _blob(grid: ndarray, generator: np.random.Generator, radii: tuple[float, float]) -> ndarray:
    """Squared distance from the centre of a random ellipsoid, 1 on its surface."""
    centre, radius = generator.uniform(-0.75, 0.75, 3), generator.uniform(*radii, 3)
    return (((grid - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(axis=0)


def _vessel(shape: tuple[int, int, int], generator: np.random.Generator, scale: float) -> ndarray:
    """A winding tube."""
    steps = 6 * max(shape)
    path = np.cumsum(gaussian_filter(generator.standard_normal((steps, 3)), (steps / 12, 0)), axis=0)
    path = 0.8 * path / (np.abs(path).max() + 1e-9) + generator.uniform(-0.3, 0.3, 3)
    index = np.clip(np.rint((path + 1) / 2 * (np.array(shape) - 1)).astype(int), 0, np.array(shape) - 1)
    line = np.zeros(shape)
    line[tuple(index.T)] = 1.0
    line = gaussian_filter(line, generator.uniform(0.8, 1.8) * scale + 0.3)
    return line > 0.25 * line.max()
