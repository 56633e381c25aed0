"""A drawn chest radiograph: a thorax that differs from patient to patient, and how it is exposed."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CLEAR, OPACITY, EFFUSION = range(3)

Grid = NDArray[Any]  # float32 (size, size), one value a pixel


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What the images of one synthetic patient share; lengths in half image widths, y down."""

    width: float  # half width of the thorax at its base
    apex: float  # y of the lung tops
    base: float  # y of the right diaphragm's top
    base_step: float  # how much lower the left one lies
    dome: float  # height of the diaphragm's dome
    heart: tuple[float, float, float]  # half width, half height, y of its centre
    mediastinum: float  # half width of the spine and the great vessels
    ribs: float  # contrast of the ribs
    rib_pitch: float
    rib_phase: float
    vessels: int  # seed of the vessel pattern
    soft_tissue: float  # haze over the lower chest (breast, muscle, fat)


def anatomy(rng: np.random.Generator) -> Anatomy:
    """Return a patient drawn from ``rng``."""
    return Anatomy(
        width=rng.uniform(0.70, 0.86),
        apex=rng.uniform(-0.82, -0.66),
        base=rng.uniform(0.38, 0.60),
        base_step=rng.uniform(0.00, 0.10),
        dome=rng.uniform(0.12, 0.24),
        heart=(rng.uniform(0.24, 0.36), rng.uniform(0.26, 0.36), rng.uniform(0.22, 0.34)),
        mediastinum=rng.uniform(0.10, 0.16),
        ribs=rng.uniform(0.05, 0.11),
        rib_pitch=rng.uniform(0.17, 0.21),
        rib_phase=rng.uniform(0.0, 1.0),
        vessels=int(rng.integers(2**31)),
        soft_tissue=rng.uniform(0.0, 0.10),
    )


def radiograph(patient: Anatomy, label: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return one picture of a patient, uint8 ``(size, size)``, bright where little radiation passes."""
    x, y = _positioned(size, rng)
    air = _lungs(patient, x, y)
    if label == OPACITY:
        air *= 1 - _opacity(air, x, y, rng)
    if label == EFFUSION:
        air *= 1 - _effusion(patient, x, y, rng)
    body = _body(patient, x, y)
    tissue = 0.66 + 0.10 * _edge(y - patient.base, 0.2) + _bones(patient, x, y) + _middle(patient, x, y)
    shadows = _vessels(patient, x, y) + _soft_tissue(patient, x, y)
    return _exposed(body * (tissue - air * (0.50 - shadows)), rng)


def _positioned(size: int, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Return the patient's coordinates of each pixel: turned, shifted and scaled a little."""
    steps = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(steps - rng.normal(0, 0.04), steps - rng.normal(0, 0.04), indexing="ij")
    angle, scale = rng.normal(0, 0.04), rng.uniform(0.94, 1.08)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    return x * cos + y * sin, y * cos - x * sin


def _edge(distance: Grid, softness: float) -> Grid:
    """Return 0 well below zero distance and 1 well above."""
    return 0.5 + 0.5 * np.tanh(distance / softness)


def _bell(distance: Grid, width: float) -> Grid:
    return np.exp(-np.square(distance / width))


def _wall(patient: Anatomy, y: Grid) -> Grid:
    """Return how far from the middle the chest wall is at height ``y``."""
    rise = np.clip((0.35 - y) / (0.35 - patient.apex), 0, 1)
    return patient.width * np.sqrt(1 - rise**2 * np.sqrt(rise))


def _lungs(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    """Return the share of air: two lungs around the heart and the great vessels, above the diaphragm."""
    aside = np.abs(x)
    domes = np.square((aside - patient.width * 0.48) / (patient.width * 0.46)) * patient.dome * 1.3
    lungs = _edge(patient.base + domes + patient.base_step * _edge(x, 0.02) - y, 0.025)
    lungs *= _edge(_wall(patient, y) - 0.05 - aside, 0.025)
    hila = 0.05 * _bell(y + 0.12, 0.16) + 0.07 * _bell(y + 0.36, 0.09) * _edge(x, 0.02)
    lungs *= _edge(aside - patient.mediastinum - hila, 0.04)
    half_width, half_height, middle = patient.heart
    down = (y - middle) / half_height
    across = (x - 0.11) / half_width - 0.25 * down
    return lungs * (1 - 0.92 * _edge(1 - np.sqrt(across * across + down * down), 0.09))


def _body(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    """Return where the patient is: neck, shoulders, flanks; the rest is air in front of the detector."""
    aside = np.abs(x)
    shoulders = np.square(np.clip(aside - 0.16, 0, None)) * 0.55 + 0.10 * _edge(aside - 0.24, 0.06)
    flanks = patient.width + 0.15 + 0.10 * _edge(-y, 0.4)
    return _edge(y + 0.98 - shoulders, 0.03) * _edge(flanks - aside, 0.03)


def _bones(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    """Return ribs from the back (falling outwards), fainter ones from the front, and the clavicles."""
    aside = np.abs(x)
    inside = _edge(_wall(patient, y) + 0.03 - aside, 0.03) * _edge(patient.base + 0.25 - y, 0.1)
    back = (y + 0.70 * np.square(aside - 0.30) - 0.14 * aside) / patient.rib_pitch + patient.rib_phase
    front = (y - 0.55 * aside) / (patient.rib_pitch * 1.25) + patient.rib_phase
    ribs = _bars(back) * _edge(aside - 0.12, 0.05) + 0.45 * _bars(front) * _edge(aside - 0.30, 0.08)
    clavicles = _bell(y - patient.apex - 0.13 + 0.22 * aside, 0.035) * _edge(aside - 0.10, 0.03)
    bones: Grid = ribs * inside + 1.1 * clavicles * _edge(0.62 - aside, 0.04)
    return bones * patient.ribs


def _bars(phase: Grid) -> Grid:
    bars: Grid = np.clip(np.cos(phase * (2 * math.pi)) * 1.6 - 0.3, 0, 1)
    return bars


def _middle(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    """Return the spine, whose vertebrae show, and the dark windpipe above the hila."""
    vertebrae = 0.07 + patient.ribs * 0.5 * _bars(y / 0.14)
    spine = _edge(patient.mediastinum * 0.75 - np.abs(x), 0.04) * vertebrae
    return spine - 0.12 * _bell(x, 0.05) * _edge(-0.30 - y, 0.08)


def _vessels(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    """Return the branching shadows around the hila, the same on all images of a patient."""
    rng = np.random.default_rng(patient.vessels)
    aside = np.abs(x)
    u, w = aside - 0.17, y + 0.08
    pattern = 0.14 * _bell(u - 0.03, 0.09) * _bell(w, 0.13)
    finest = 0.6 * float(x[0, 1] - x[0, 0])
    for _ in range(13):
        angle, reach, bend = rng.uniform(-1.3, 1.5), rng.uniform(0.25, 0.55), rng.normal(0, 0.35)
        here = x > 0 if rng.random() < 0.5 else x < 0
        along = u * math.cos(angle) + w * math.sin(angle)
        here &= (along > 0) & (along < reach)
        a = along[here]
        across = w[here] * math.cos(angle) - u[here] * math.sin(angle) + bend * a * a
        thickness = np.clip(0.045 * (1 - a / reach), 0.008, None) + finest
        pattern[here] += 0.10 * np.exp(-np.square(across / thickness)) * _edge(reach - a, 0.08)
    return np.clip(pattern, 0, 0.25)


def _soft_tissue(patient: Anatomy, x: Grid, y: Grid) -> Grid:
    return patient.soft_tissue * _bell(np.abs(x) - 0.45, 0.30) * _bell(y - 0.28, 0.24)


def _opacity(air: Grid, x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Return a cloudy patch somewhere in a lung, from obvious to hardly visible."""
    centre = rng.choice(np.flatnonzero(air > 0.7))
    angle, radius, stretch = rng.uniform(0, math.pi), rng.uniform(0.20, 0.36), rng.uniform(1.0, 1.6)
    u, w = x - x.flat[centre], y - y.flat[centre]
    along = (u * math.cos(angle) + w * math.sin(angle)) / stretch
    across = w * math.cos(angle) - u * math.sin(angle)
    distance = np.sqrt(along * along + across * across) / radius + 0.25 * _clouds(len(x), rng)
    strength = min(max(rng.lognormal(-0.1, 0.35), 0.4), 0.98)
    return strength * _edge(1 - distance, 0.35)


def _clouds(size: int, rng: np.random.Generator) -> Grid:
    coarse = rng.standard_normal((16, 16), dtype=np.float32)
    clouds: Grid = ndimage.zoom(coarse, size / 16, order=1, mode="nearest", grid_mode=True)
    return clouds


def _effusion(patient: Anatomy, x: Grid, y: Grid, rng: np.random.Generator) -> Grid:
    """Return fluid at the foot of one lung: a blunted angle, or a level that rises towards the chest wall."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    height = min(max(rng.lognormal(-1.05, 0.45), 0.15), 0.8)
    aside = np.clip(side * x / patient.width, 0, 1)
    floor = patient.base + 0.9 * patient.dome + (patient.base_step if side > 0 else 0.0)
    level = floor - height * (0.45 + 1.1 * aside * aside * aside)
    return 0.92 * _edge(y - level, 0.05) * _edge(side * x, 0.02)


def _exposed(picture: Grid, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return what the detector makes of it: scatter, exposure, quantum noise and 8 bits."""
    size = len(picture)
    scatter = ndimage.uniform_filter(ndimage.uniform_filter(picture, size // 5), size // 5)
    tilt = np.linspace(-1, 1, size, dtype=np.float32)
    tilted = tilt[:, None] * rng.normal(0, 0.02) + tilt[None, :] * rng.normal(0, 0.02)
    veiled = picture + rng.uniform(0.05, 0.30) * (scatter - picture) + tilted
    exposed = np.clip(veiled * rng.uniform(0.90, 1.08) + rng.normal(0.04, 0.02), 0, 1)
    exposed **= rng.uniform(0.85, 1.2)
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    noisy = exposed + grain * (0.010 + 0.024 * np.sqrt(exposed)) * rng.uniform(0.4, 2.4)  # dose
    pixels: NDArray[np.uint8] = np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)
    return pixels
