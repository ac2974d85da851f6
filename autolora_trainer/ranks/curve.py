"""Held-out loss against size: the curve that a size was found on."""

import math
from dataclasses import dataclass

CURVE_FILE = "curve.json"
BITS_PER_PARAMETER = 2.0  # that a LoRA parameter stores; see `Curve.load`
MOST_LOAD = 1.5  # of a size that is found; see `find_size`


@dataclass(frozen=True)
class CurvePoint:
    """One size of an adapter.

    Attributes:
        components, parameters: of the best components together.
        loss: on held-out rows, in nats a target.
        error: standard error of its difference from the best loss of the curve, paired by row.
    """

    components: int
    parameters: int
    loss: float
    error: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Held-out loss against size.

    Attributes:
        points: by rising size; the first is no adapter.
        kept: components of the size that was found; 0 where nothing was learned.
        decided: whether the gain is beyond its noise.
        tolerance: the share of the gain that may be lost; `of_whole`, that by which the loss of the largest may grow.
        targets: of the training rows; None where their loss is not in nats.
    """

    points: tuple[CurvePoint, ...]
    kept: int
    decided: bool
    tolerance: float
    targets: int | None = None
    of_whole: bool = False

    @property
    def band(self) -> tuple[float, float]:
        """The losses that the tolerance leaves, from the best of what it compares with."""
        if self.of_whole:
            return self.points[-1].loss, self.points[-1].loss * (1 + self.tolerance)
        return self.best.loss, self.best.loss + self.tolerance * self.gain

    @property
    def best(self) -> CurvePoint:
        return min(self.points, key=lambda point: point.loss)

    @property
    def size(self) -> int:
        """Parameters of the kept components."""
        return next((point.parameters for point in self.points if point.components == self.kept), 0)

    @property
    def gain(self) -> float:
        """What the best size takes off the loss of no adapter, in nats a target."""
        return self.points[0].loss - self.best.loss

    @property
    def bits(self) -> float | None:
        """What the training rows teach, at most: the gain, in bits, of each of their targets."""
        return None if self.targets is None else self.gain / math.log(2) * self.targets

    def load(self, parameters: int) -> float | None:
        """The bits that the rows teach, of those that so many parameters store: a parameter stores about 2 (measured
        for knowledge in transformers by Allen-Zhu and Li 2024; held against LoRA's sizes in "LoRA Without Regret",
        Thinking Machines 2025). Far below 1 a larger adapter has no use; above it, capacity is the limit."""
        return None if self.bits is None or not parameters else self.bits / (BITS_PER_PARAMETER * parameters)

    def to_dict(self) -> dict:
        points = [vars(point) | {"error": _finite(point.error)} for point in self.points]
        own = {name: getattr(self, name) for name in ("tolerance", "decided", "kept", "targets", "of_whole")}
        return {**own, "points": points}

    @classmethod
    def from_dict(cls, document) -> "Curve":
        """Raises `ValueError` for what is no curve."""
        if not isinstance(document, dict) or not isinstance(points := document.get("points"), list):
            raise ValueError("curve must be an object with points")
        if not 0 < len(points) <= 1000:
            raise ValueError("curve must have from 1 to 1000 points")
        checked = []
        for point in points:
            values = point if isinstance(point, dict) else {}
            counts = [values.get(name) for name in ("components", "parameters")]
            numbers = [values.get(name) for name in ("loss", "error")]
            if any(type(c) is not int or not 0 <= c < 10**15 for c in counts) or not all(map(_is_number, numbers)):
                raise ValueError("a point of the curve must have components, parameters, loss and error")
            checked.append(CurvePoint(*counts, *map(float, numbers)))
        kept, decided, tolerance = (document.get(name) for name in ("kept", "decided", "tolerance"))
        if type(kept) is not int or type(decided) is not bool or not _is_number(tolerance):
            raise ValueError("curve must have kept, decided and tolerance")
        targets = document.get("targets")
        if targets is not None and (type(targets) is not int or not 0 < targets < 10**15):
            raise ValueError("targets of the curve must be a positive number")
        if type(of_whole := document.get("of_whole", False)) is not bool:
            raise ValueError("of_whole of the curve must be true or false")
        return cls(tuple(checked), kept, decided, float(tolerance), targets, of_whole)


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 1e30


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30
