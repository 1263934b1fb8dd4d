"""Sections of the settings: ranges, choices and checks across fields."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from florilegium.config.fields import section, setting


@section
class Walk:
    """A walk in the garden."""

    steps: int = setting(3, "how many", low=1, high=9)
    way: str = setting("north", "where to", choices=("north", "south"))
    stops: list[int] = setting(factory=lambda: [1, 2], help="after how many steps", low=1, high=9)
    most: int | None = setting(None, "no more than this", low=1)

    def __post_init__(self) -> None:
        if max(self.stops) > self.steps:
            raise ValueError("stops must lie on the way")


@section
class LongWalk(Walk):
    """A walk with a rest."""

    rest: float = setting(0.5, "share of the time", low=0, high=1)


def test_defaults_hold_and_a_section_is_a_structured_config() -> None:
    assert Walk() == Walk(3, "north", [1, 2], None)
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Walk), {"steps": 5, "most": 7}))
    assert made == Walk(5, "north", [1, 2], 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps must lie between 1 and 9, got 0"),
        ({"way": "east"}, "way must be one of north, south, got 'east'"),
        ({"stops": [1, 10]}, "stops must lie between 1 and 9, got 10"),
        ({"most": 0}, "most must lie between 1 and inf, got 0"),
        ({"stops": [4]}, "stops must lie on the way"),
    ],
)
def test_a_value_out_of_range_is_named(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        Walk(**values)


def test_a_derived_section_checks_its_own_fields_and_its_parent_s() -> None:
    with pytest.raises(ValueError, match="rest must lie between 0 and 1, got 2"):
        LongWalk(rest=2)
    with pytest.raises(ValueError, match="stops must lie on the way"):
        LongWalk(stops=[4])
