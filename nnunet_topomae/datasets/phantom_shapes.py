"""The phantom's structures as implicit functions of a position in mm: negative inside, zero on the surface.

They are placed so that they cannot touch: the vessel's trunk on the body's axis, organ, shell and ring in sectors
120 degrees apart around it, the vessel's side arms in the gaps between them.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.random import Generator

Field = Float[ndarray, "D H W"]
Points = Float[ndarray, "3 D H W"]
TWIG_RADIUS = 0.062  # of the body's radius: the thinnest structure


def place_structures(
    points: Points, radius: float, half_length: float, generator: Generator
) -> tuple[dict[int, Field], Field]:
    """Draw one arrangement of the four structures.

    Args:
        points: positions in mm from the centre of the volume.
        radius: half of the body's in-plane width in mm, the unit of all lengths.
        half_length: half of the volume's length in mm along the body.
        generator: source of all randomness.

    Returns:
        the implicit function of each structure by label (1 organ, 2 shell, 3 ring, 4 vessel), and of the
        shell's cavity.
    """
    turn = generator.uniform(-0.35, 0.35)
    sectors = turn + np.radians([90.0, 210.0, 330.0])
    levels = generator.uniform(-0.22, 0.22, size=3) * half_length
    centres = [_at(0.53 * radius, angle, level) for angle, level in zip(sectors, levels, strict=True)]
    scales = generator.uniform(0.92, 1.0, size=3) * radius
    organ = _organ(points - centres[0], scales[0], generator)
    wall, cavity = _shell(points - centres[1], scales[1], generator)
    ring = _ring(points - centres[2], scales[2], generator)
    vessel = _vessel(points, radius, half_length, sectors + np.pi / 3, generator)
    return {1: organ, 2: wall, 3: ring, 4: vessel}, cavity


def _at(distance: float, angle: float, level: float) -> Float[ndarray, "3 1 1 1"]:
    """Position in mm at a distance from the body's axis, an in-plane angle and a level along it."""
    position = np.array([level, distance * np.sin(angle), distance * np.cos(angle)], dtype=np.float32)
    return position.reshape(3, 1, 1, 1)  # (3,) -> (3, 1, 1, 1), to subtract from (3, D, H, W)


def _organ(points: Points, scale: float, generator: Generator) -> Field:
    """Ellipsoid with smooth bumps; every ray from its centre leaves it once, so it has no tunnel and no void."""
    semi_axes = scale * np.array([0.52, 0.33, 0.33]) * generator.uniform(0.92, 1.0, size=3)
    scaled = points / semi_axes.reshape(3, 1, 1, 1).astype(np.float32)  # (3,) -> (3, 1, 1, 1)
    distance = np.sqrt((scaled**2).sum(axis=0)) + np.float32(1e-6)
    phases = generator.uniform(0, 2 * np.pi, size=3)
    bumps = sum(np.sin(3.0 * axis / distance + phase) for axis, phase in zip(scaled, phases, strict=True))
    organ: Field = distance * (1.0 + 0.035 * bumps) - 1.0
    return organ


def _shell(points: Points, scale: float, generator: Generator) -> tuple[Field, Field]:
    """Closed wall between two spheroids, and the cavity inside."""
    stretch = generator.uniform(1.0, 1.25)  # along the body's axis
    distance = np.sqrt((points[0] / stretch) ** 2 + points[1] ** 2 + points[2] ** 2)
    outer, inner = 0.34 * scale, 0.19 * scale
    return np.maximum(distance - outer, inner - distance), distance - inner


def _ring(points: Points, scale: float, generator: Generator) -> Field:
    """Torus whose axis lies up to 35 degrees from the body's axis."""
    tilt, turn = generator.uniform(0.0, 0.6), generator.uniform(0.0, 2 * np.pi)
    axis = np.array([np.cos(tilt), np.sin(tilt) * np.sin(turn), np.sin(tilt) * np.cos(turn)], dtype=np.float32)
    along = np.tensordot(axis, points, axes=1)
    across = np.sqrt(np.maximum((points**2).sum(axis=0) - along**2, 0.0))
    ring: Field = np.hypot(across - 0.245 * scale, along) - 0.105 * scale
    return ring


def _vessel(
    points: Points, radius: float, half_length: float, directions: Float[ndarray, "3"], generator: Generator
) -> Field:
    """Tree of tubes: a gently curved trunk; along each direction an arm that splits into two twigs."""
    levels = np.linspace(-0.88, 0.88, 6) * half_length
    sway = 0.03 * radius * generator.uniform(-1.0, 1.0, size=(2, 6))
    trunk = np.stack([levels, *sway], axis=1)  # (6, 3), mm
    tubes = [_tube(points, a, b, 0.08 * radius) for a, b in pairwise(trunk)]
    roots = np.array([1, 2, 3]) if generator.random() < 0.5 else np.array([3, 2, 1])
    for root, angle in zip(roots, directions, strict=True):
        start = trunk[root]
        level = start[0] + generator.uniform(0.05, 0.2) * radius
        fork = _at(generator.uniform(0.5, 0.56) * radius, angle, level).ravel()
        tubes.append(_tube(points, start, fork, 0.068 * radius))
        for side in (-1.0, 1.0):
            rise = side * generator.uniform(0.3, 0.42) * radius
            tip = _at(generator.uniform(0.7, 0.76) * radius, angle, level + rise).ravel()
            tubes.append(_tube(points, fork, tip, TWIG_RADIUS * radius))
    blend = np.float32(0.02 * radius)  # mm; a smooth union, so that forks are rounded and close no pinhole
    vessel: Field = -blend * np.logaddexp.reduce([tube / -blend for tube in tubes])
    return vessel


def _tube(points: Points, start: Float[ndarray, "3"], end: Float[ndarray, "3"], radius: float) -> Field:
    """Signed distance in mm to a straight tube with round ends."""
    direction = (end - start).astype(np.float32)
    relative = points - start.astype(np.float32).reshape(3, 1, 1, 1)  # (3,) -> (3, 1, 1, 1)
    along = np.clip(np.tensordot(direction, relative, axes=1) / (direction @ direction), 0.0, 1.0)
    squared = (relative**2).sum(axis=0) - along * (2 * np.tensordot(direction, relative, axes=1))
    squared += along**2 * (direction @ direction)
    tube: Field = np.sqrt(np.maximum(squared, 0.0)) - np.float32(radius)
    return tube
