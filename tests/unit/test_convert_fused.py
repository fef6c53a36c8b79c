"""Tensors that lie fused with others in the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hotset.models import TensorSpec
from hotset.models.spec import Fused
from hotset.tools.convert_source import FileRows, SourceTensor


@pytest.mark.parametrize("cols", [0, 5])
def test_any_rows_of_a_part_are_read_where_they_lie(cols: int, tmp_path: Path) -> None:
    """A part of 3 rows from the second on, in each 7 of 28."""
    whole = np.random.default_rng(0).standard_normal((28, cols or 1)).astype(np.float32)
    (tmp_path / "file").write_bytes(b"header" + whole.tobytes())
    spec = TensorSpec("part", "k", 0, 12, cols, "attention", Fused("whole", 7, 1, 3))
    tensor = SourceTensor(spec, "F32", tmp_path / "file", offset=6 + whole[:1].nbytes)
    wanted = whole[[7 * turn + 1 + i for turn in range(4) for i in range(3)]]
    rows = FileRows()
    for begin in range(12):
        for end in range(begin + 1, 13):
            got = rows.read(tensor, begin, end).view("<f4")
            np.testing.assert_array_equal(got, wanted[begin:end], err_msg=f"{begin} to {end}")
