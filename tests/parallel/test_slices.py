"""Only the first axis of a mesh crosses the slow links between slices."""

from dataclasses import dataclass

import pytest

from parallel.mesh import arrange_slices


@dataclass(frozen=True)
class Device:
    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a kind without a topology"

    @property
    def process_index(self) -> int:
        return self.slice_index


def devices(num: int, slices: int) -> list[Device]:
    """Number the devices so that neighbours lie in different slices."""
    return [Device(i, i % slices) for i in range(num)]


@pytest.mark.parametrize("sizes", [(8,), (2, 4), (4, 2), (2, 2, 2), (1, 4, 2)])
def test_axes_after_the_first_stay_inside_a_slice(sizes):
    mesh = arrange_slices(devices(8, 2), sizes)
    assert mesh.shape == sizes
    assert len({device.id for device in mesh.flat}) == 8
    first = next(i for i, size in enumerate(sizes) if size > 1)
    rows = mesh.reshape(sizes[first], -1)
    assert all(len({device.slice_index for device in row}) == 1 for row in rows)
    # Along the first axis each slice is one run, so a ring crosses twice.
    order = [row[0].slice_index for row in rows]
    assert order == sorted(order) and set(order) == {0, 1}


def test_a_first_axis_that_slices_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"in 4 slices, which do not divide the degree 2"):
        arrange_slices(devices(8, 4), (2, 4))
