"""Held-out loss against size: the curve that a size was found on."""

import math
from dataclasses import dataclass

CURVE_FILE = "curve.json"


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
        kept: the fewest components that keep the gain; 0 where nothing was learned.
        decided: whether the gain is beyond its noise.
        tolerance: the share of the gain that may be lost.
    """

    points: tuple[CurvePoint, ...]
    kept: int
    decided: bool
    tolerance: float

    @property
    def best(self) -> CurvePoint:
        return min(self.points, key=lambda point: point.loss)

    @property
    def gain(self) -> float:
        """What the best size takes off the loss of no adapter, in nats a target."""
        return self.points[0].loss - self.best.loss

    def to_dict(self) -> dict:
        points = [vars(point) | {"error": _finite(point.error)} for point in self.points]
        return {"tolerance": self.tolerance, "decided": self.decided, "kept": self.kept, "points": points}

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
        return cls(tuple(checked), kept, decided, float(tolerance))


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 1e30


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e30
