"""TRL, which is installed beside the engine for its tests, trains on its exports."""

import io

import numpy as np
import pytest
import spoilt
from PIL import Image
from turned_pictures import exif_of, with_exif

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["trl", "trl-kto", "sft"])
def test_every_row_is_loaded_and_a_step_moves_the_weights(check, num_rows, name):
    code, figures = check("trl", name)
    assert code == 0, figures
    assert figures["rows"] == num_rows(name)


def orientation_left(rows):
    """The pixels that the models saw, under the tag of the camera: `datasets` turns them once more."""
    [image] = next(row for row in rows if row["prompt"][0]["content"][-1]["text"] == "And of this one?")["images"]
    image["bytes"] = with_exif(np.asarray(Image.open(io.BytesIO(image["bytes"]))), "PNG", exif_of(3))


def cut_picture(rows):
    image = rows[0]["images"][0]
    image["bytes"] = image["bytes"][: len(image["bytes"]) // 2]


@pytest.mark.parametrize(("change", "reason"), [(orientation_left, "its pixels are not"), (cut_picture, "truncated")])
def test_a_spoilt_export_is_refused(check, spoil, change, reason):
    code, wrong = check("trl", "trl", spoil("trl", spoilt.parquet_rows(change)))
    assert code == 1
    assert reason in wrong
