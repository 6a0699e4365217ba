"""What `datasets` is told about the columns of a parquet file, in the file's own metadata."""

import json

import pyarrow as pa

from data_engine.schemas import IMAGE


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the key "huggingface", by which `datasets` makes pictures of the structs of bytes and path.

    Lists are spelled so that datasets 2.21 to 5 read them: "List", which newer ones write, is unknown to older ones.
    """
    features = {field.name: _feature(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: pa.DataType) -> dict | list:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        inner = _feature(kind.value_type)
        # A Sequence of a struct would become a struct of lists.
        return {"feature": inner, "_type": "Sequence"} if "_type" in inner else [inner]
    return {"dtype": {"double": "float64", "float": "float32"}.get(str(kind), str(kind)), "_type": "Value"}
