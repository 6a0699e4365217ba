"""The weight files of a checkpoint folder, and what their headers say: names, shapes and dtypes. Imports no torch.

Of a safetensors file only the header is read, a few KB of 14 GB, and held against the size of the file. The header of
a .bin is a pickle, which checkpoint.py reads with torch; here it is only seen to be a whole zip archive.
"""

import json
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_engine.errors import python_command
from data_engine.models.checkpoints.json_files import ModelError, read_json, reason, refuse_pointer
from data_engine.store.absent import is_file, matching

# As transformers looks for them: an index may be left over from another save, beside a whole file.
FILES = ("model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
# Folders of a trainer that saves the shares of its ranks, DeepSpeed and FSDP, and what makes one checkpoint of them.
_SHARES = {
    "global_step*": '"python zero_to_fp32.py . . --safe_serialization"',
    "pytorch_model_fsdp*": '"accelerate merge-weights {} ."',
}
# Of safetensors' dtypes.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
# Weights in any other are packed or scaled: a cast would give other numbers.
FLOATS = ("BF16", "F16", "F32", "F64")
# The library's own limit.
MAX_HEADER_BYTES = 100_000_000
# So many names are told.
_TOLD = 3


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    """as safetensors spells it"""

    def __str__(self) -> str:
        return f"{self.name} in {self.file}"


def quantised_weight(one: Stored) -> ModelError:
    """What is said of a tensor whose numbers are packed or scaled."""
    return ModelError(
        f"weight {one} is stored as {one.dtype}: quantised checkpoints are not read; pass one in bfloat16, float16 or "
        "float32"
    )


def some(names: Iterable[object]) -> str:
    """The first of many names, for a message."""
    names = sorted(map(str, names))
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint. Raises ModelError naming what is missing."""
    return located(folder)[0]


def located(folder: Path) -> tuple[list[Path], Path | None]:
    """The weight files, and the index that names them if there is one: a whole file before an index."""
    for name in FILES:
        if is_file(folder / name):
            return [folder / name], None
        index = folder / f"{name}{INDEX}"
        if is_file(index):
            return sorted({folder / shard for shard in read_index(index).values()}), index
    expected = "expected model.safetensors, pytorch_model.bin, or an index of shards"
    raise ModelError(f"{folder} has no weights: {expected}{_of_ranks(folder)}")


def _of_ranks(folder: Path) -> str:
    """What to do where a trainer left the shares of its ranks apart."""
    for pattern, command in _SHARES.items():
        for share in matching(folder, pattern):
            told = command.format(share.name)
            return f". A trainer left the shares of its ranks in {share.name}: put them together, by {told} in {folder}"
    return ""


def read_index(index: Path) -> dict[str, str]:
    """File name by tensor name. Raises ModelError where a file is missing, or is none of this folder."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ModelError(f"{index} has no weight_map, from the name of each weight to its file")
    for name, file in found.items():
        # Within the folder alone: a checkpoint comes from somewhere else, and must not name this machine's files.
        if not isinstance(file, str) or file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise ModelError(f"{index} gives {name} the file {file!r}; expected the name of a file beside it")
    # os.path: a name too long for a file is none that is there, and no exception.
    missing = [name for name in sorted(set(found.values())) if not os.path.isfile(index.parent / name)]
    if missing:
        first = ", ".join(missing[:5])
        raise ModelError(f"{index} names {len(missing)} weight files that are missing: {first}; download them again")
    return found


def refuse_empty(stored: Iterable[Stored]) -> None:
    """Raise ModelError for a tensor without numbers: what one rank had of a weight that was split, and not gathered."""
    for one in stored:
        if 0 in one.shape:
            raise ModelError(
                f"{one} is empty: DeepSpeed's ZeRO-3 had split the model, and it was saved without its weights being "
                'gathered. Save it with "stage3_gather_16bit_weights_on_model_save": true, or put the shares together '
                "by zero_to_fp32.py"
            )


def check_files(folder: Path) -> None:
    """Raise ModelError for a weight file that is not whole, as far as can be seen without torch."""
    for file in weight_files(folder):
        if file.suffix == ".bin":
            check_archive(file)
        else:
            read_header(file)


def read_header(file: Path) -> list[Stored]:
    """The tensors of a safetensors file in the order of their bytes. Raises ModelError where it is not whole."""
    try:
        return _stored(file, *_header_and_rest(file))
    except ModelError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(file, reason(error)) from error


def _header_and_rest(file: Path) -> tuple[dict, int]:
    """The header, and the number of bytes behind it."""
    _check_begun(file)
    size = file.stat().st_size
    # With a small buffer: else Python 3.14 reads 128 kB for the first 8 bytes.
    with open(file, "rb", buffering=4096) as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise _broken(file, f"its header should be {length} bytes long, the file is {size}")
        header = json.loads(opened.read(length).decode(), object_pairs_hook=_unique)
    if not isinstance(header, dict):
        raise _broken(file, "its header is no JSON object")
    return header, size - 8 - length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in the header twice")
    return found


def _stored(file: Path, header: dict, size: int) -> list[Stored]:
    """Raises ModelError unless the tensors cover the bytes behind the header, each byte once."""
    header.pop("__metadata__", None)
    places = []
    for name, told in header.items():
        dtype, shape, offsets = (_field(told, key) for key in ("dtype", "shape", "data_offsets"))
        if not isinstance(dtype, str) or dtype not in BITS or not _counts(shape) or not _counts(offsets, 2):
            raise _broken(file, f"its header does not describe {name}: {str(told)[:200]}")
        if BITS[dtype] * math.prod(shape) != 8 * (offsets[1] - offsets[0]):
            raise _broken(file, f"{name} has shape {shape} in {dtype}, but {offsets[1] - offsets[0]} bytes")
        places.append((*offsets, Stored(file, name, tuple(shape), dtype)))
    places.sort(key=lambda place: place[:2])
    end = 0
    for begin, ends, one in places:
        if begin != end:
            raise _broken(file, f"{one.name} begins at byte {begin} of the weights, expected {end}")
        end = ends
    if end != size:
        raise _broken(file, f"{end} bytes of weights were written, {size} are there")
    return [one for *_, one in places]


def _field(told: object, key: str) -> object:
    return told.get(key) if isinstance(told, dict) else None


def _counts(value: object, length: int | None = None) -> bool:
    """Whether a value is a list of numbers that are not negative, of that length if one is given."""
    right = isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
    return right and length in (None, len(value))


def check_archive(file: Path) -> None:
    """Raise ModelError where a .bin is not the zip archive that torch.save writes, whole."""
    try:
        _check_begun(file)
        with open(file, "rb") as opened:
            begin = opened.read(4)
        if begin == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
    except ModelError:
        raise
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ModelError(f"{file} is cut or broken ({reason(error)}): copy or download it again") from error
    if begin[:1] == b"\x80":
        rewrite = "import sys, torch; torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[1])"
        raise ModelError(
            f"{file} is in the format of torch before 1.6, which cannot be mapped; rewrite it once: "
            f"{python_command(rewrite, file)}"
        )
    if begin != b"PK\x03\x04" or not any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"{file} was not written by torch.save, or is broken: copy or download it again")


def _check_begun(file: Path) -> None:
    if file.stat().st_size == 0:
        raise ModelError(f"{file} is empty: copy or download it again")
    refuse_pointer(file)


def _broken(file: Path, why: str) -> ModelError:
    return ModelError(f"{file} is not a whole safetensors file ({why}): copy or download it again")
