"""Arrow's types of a column: which ones hold the same values, and the one type that a dataset of many files has.

Writers spell one type in several ways: `large_string` or `string`, int32 or int64, fields of a struct in another
order, a column of nulls without any type. Files that differ in these alone are one dataset.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator

import pyarrow as pa

from data_engine.questions.sources.base import refuse
from data_engine.questions.sources.column_names import SAME_NAMES, ColumnNames

IMAGE_FIELDS = ("bytes", "path")
MESSAGE_FIELDS = ("role", "content")
# What LLaVA and ShareGPT call the turns of a row.
CONVERSATIONS = ("conversations", "conversation")
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


def is_text(type: pa.DataType) -> bool:
    """Whether a column holds text, in any of Arrow's layouts, or nothing but nulls."""
    return _plain(type) in (pa.string(), pa.large_string(), pa.string_view(), pa.null())


def is_binary(type: pa.DataType) -> bool:
    """Whether a column holds bytes of any length, in any of Arrow's layouts."""
    return _plain(type) in (pa.binary(), pa.large_binary(), pa.binary_view())


def is_list(type: pa.DataType) -> bool:
    """Whether a column holds lists, in any of Arrow's layouts but those with offsets of their own."""
    return pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)


def is_json(type: pa.DataType) -> bool:
    """Whether cells are JSON: `datasets` and DuckDB keep values so of which not all have one type."""
    return isinstance(type, pa.JsonType)


def is_uuid(type: pa.DataType) -> bool:
    """Whether cells are UUIDs, which are read as their text."""
    return isinstance(type, pa.UuidType)


def columns_of(schema: pa.Schema, where: str, names: ColumnNames = SAME_NAMES) -> dict[str, pa.DataType]:
    """The columns by the engine's names, dictionaries as what they hold, image structs with the fields that are read.

    Raises UserError where a column that is read, or a field of an image, is there twice: either could be meant.
    """
    schema = names.renamed(schema)
    counts = Counter(schema.names)
    twice = {f'"{names.in_dataset(name)}"': None for name in names.are_read(schema.names) if counts[name] > 1}
    refuse(bool(twice), f"{where} has more than one column {', '.join(twice)}; keep one and rename or drop the others")
    columns = {field.name: _plain(field.type) for field in schema}
    for name in ("image", "images"):
        if name in columns:
            columns[name] = _read_image(columns[name], f'{where}: the struct of "{names.in_dataset(name)}"')
    return columns


def _read_image(image: pa.DataType, where: str) -> pa.DataType:
    """The type of an image, or of a list of them, with those fields of their struct that are read."""
    if is_list(image):
        return _list_of(image, _read_image(image.value_type, where))
    if not pa.types.is_struct(image):
        return image
    fields = [field for field in image if field.name in IMAGE_FIELDS]
    twice = sorted({f'"{field.name}"' for field in fields if image.get_field_index(field.name) < 0})
    refuse(bool(twice), f"{where} has more than one field {', '.join(twice)}; keep one")
    return pa.struct(fields) if fields else image


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both columns, where they differ in spelling alone; otherwise None."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_integer(one) and pa.types.is_integer(other):
        return _integer(one, other)
    if pa.types.is_floating(one) and pa.types.is_floating(other):
        return max(one, other, key=lambda type: type.bit_width)
    if is_text(one) and is_text(other):
        return pa.large_string()
    if is_binary(one) and is_binary(other):
        return pa.large_binary()
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _struct(one, other)
    if is_list(one) and is_list(other):
        inner = unified(one.value_type, other.value_type)
        return None if inner is None else pa.large_list(inner)
    return None


def as_type(column: pa.Array, type: pa.DataType) -> pa.Array:
    """A column in the type that `unified` gave for it and others."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == type:
        return column
    if is_uuid(column.type):
        return pa.array([cell if cell is None else str(cell) for cell in column.to_pylist()], type)
    if pa.types.is_struct(column.type):
        # flatten, unlike field(), keeps the struct's own nulls.
        parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        cells = [
            as_type(parts[field.name], field.type) if field.name in parts else pa.nulls(len(column), field.type)
            for field in type
        ]
        return pa.StructArray.from_arrays(cells, fields=list(type), mask=column.is_null())
    if is_list(column.type) and is_list(type):
        # Arrow converts no structs inside of lists.
        lists = pa.LargeListArray if pa.types.is_large_list(type) else pa.ListArray
        offsets = pa.array(list_offsets(column), pa.int64() if lists is pa.LargeListArray else pa.int32())
        return lists.from_arrays(offsets, as_type(column.flatten(), type.value_type), type, mask=column.is_null())
    return column.cast(type)


def list_offsets(column: pa.Array) -> list[int]:
    """Where each list of a column begins and the last one ends, among the values that flatten() gives."""
    # Not above: no other function of Arrow is asked for before work begins, and the module takes 0.1 s to import.
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.list_value_length(column), 0).to_pylist()
    return list(itertools.accumulate(lengths, initial=0))


def as_bytes(column: pa.Array) -> pa.Array:
    """Text, JSON or binary of any layout as bytes: Arrow does not promise that text is valid UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return (column.storage if is_json(column.type) else column).cast(pa.large_binary())


def holds_bytes(type: pa.DataType) -> bool:
    """Whether there are bytes in a column, as of pictures and sound."""
    return any(map(is_binary, _with_parts(type)))


def value_reader(type: pa.DataType) -> Callable[[pa.Scalar], object]:
    """What gives a cell of such a column as a Python value, with the value of whatever is JSON in it.

    That raises ValueError for JSON that is none, and for text that is not valid UTF-8.
    """
    # Looked at once: types are compared more slowly than cells are read.
    if any(map(is_json, _with_parts(type))):
        return lambda cell: _out_of_json(cell.as_py(), type)
    return lambda cell: cell.as_py()


def plain_values(column: pa.Array) -> list:
    """The cells as Python values: text that is not valid UTF-8 is mended; a list with such text, and JSON that is
    none, is None.

    A float of 32 bits is the number that it is written as: 0.1, not 0.10000000149011612.
    """
    if is_text(column.type):
        return [cell if cell is None else cell.decode(errors="replace") for cell in as_bytes(column).to_pylist()]
    if pa.types.is_float32(column.type):
        return [cell if cell is None else float(cell) for cell in column.cast(pa.string()).to_pylist()]
    if is_list(column.type) and pa.types.is_float32(column.type.value_type):
        return [plain_values(cell.values) if cell.is_valid else None for cell in column]
    read = value_reader(column.type)
    return [_or_none(read, cell) for cell in column]


def _or_none(read: Callable[[pa.Scalar], object], cell: pa.Scalar) -> object:
    try:
        return read(cell)
    except (ValueError, RecursionError):
        return None


def _out_of_json(value: object, type: pa.DataType) -> object:
    if value is None:
        return None
    if is_json(type):
        return json.loads(value)
    if pa.types.is_struct(type):
        return {field.name: _out_of_json(value[field.name], field.type) for field in type}
    return [_out_of_json(one, type.value_type) for one in value] if is_list(type) else value


def _with_parts(type: pa.DataType) -> Iterator[pa.DataType]:
    """The type, and those of all that is inside of it."""
    yield type
    parts = [field.type for field in type] if pa.types.is_struct(type) else [type.value_type] if is_list(type) else []
    for part in parts:
        yield from _with_parts(part)


def _plain(type: pa.DataType) -> pa.DataType:
    """The type of the values, without how they are packed."""
    if is_uuid(type):
        return pa.string()
    if pa.types.is_dictionary(type):
        return type.value_type
    if pa.types.is_struct(type):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in type])
    if is_list(type):
        return _list_of(type, _plain(type.value_type))
    return type


def _list_of(type: pa.DataType, inner: pa.DataType) -> pa.DataType:
    """A list of other values; of what has a size or a length of its own, a plain one."""
    if type.value_type == inner and not pa.types.is_fixed_size_list(type):
        return type
    return pa.large_list(inner) if pa.types.is_large_list(type) else pa.list_(inner)


def _integer(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    signed = [pa.types.is_signed_integer(type) for type in (one, other)]
    if signed[0] == signed[1]:
        return max(one, other, key=lambda type: type.bit_width)
    # What is unsigned needs twice the bits in a signed type.
    bits = [type.bit_width * (1 if sign else 2) for type, sign in zip((one, other), signed, strict=True)]
    return _SIGNED.get(max(bits))


def _struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Fields in the order of `one`; a field that one of them lacks is null there."""
    parts = [{field.name: field.type for field in type} for type in (one, other)]
    if len(parts[0]) < one.num_fields or len(parts[1]) < other.num_fields:
        return None
    names = list(parts[0] | parts[1])
    types = [unified(parts[0].get(name, pa.null()), parts[1].get(name, pa.null())) for name in names]
    return None if None in types else pa.struct(list(zip(names, types, strict=True)))
