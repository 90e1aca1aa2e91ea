"""Whether an ONNX file is whole: onnxruntime would read weights that it names in other files.

Of protobuf's wire format only what is needed: a message is a row of fields, each a key (its number and its type) and a
value; what has a length is stepped over unless tensors can lie in it.
"""

from __future__ import annotations

INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""By message of onnx.proto: the fields in which tensors lie, and what they are."""
EXTERNAL_DATA = 13
"""The field of a tensor that says in which file its numbers lie."""
FIXED = {1: 8, 5: 4}
"""By type of a value: its bytes."""
MOST_FIELDS = 1_000_000
"""Of a model: each takes microseconds here, and onnxruntime makes objects of them. Our exports have some 20,000."""


def names_other_files(content: bytes) -> bool:
    """Whether some tensor of a model says that its numbers lie elsewhere.

    Raises ``ValueError`` for what is no protobuf, for keys and types that no writer of ONNX makes, and for more than
    ``MOST_FIELDS`` fields.
    """
    waiting, num_fields = [("model", 0, len(content))], 0
    while waiting:
        message, at, end = waiting.pop()
        while at < end:
            num_fields += 1
            if num_fields > MOST_FIELDS:
                raise ValueError(f"more than {MOST_FIELDS} fields")
            key, at = _number(content, at, end)
            field, kind = key >> 3, key & 7
            if not 0 < field < 2**29:
                raise ValueError(f"no ONNX: a field {field} at byte {at}")
            if message == "tensor" and field == EXTERNAL_DATA:
                return True
            if kind == 0:
                _, at = _number(content, at, end)
                continue
            if kind == 2:
                size, at = _number(content, at, end)
            elif kind in FIXED:
                size = FIXED[kind]
            else:
                raise ValueError(f"no ONNX: a field of type {kind} at byte {at}")
            if size > end - at:
                raise ValueError(f"no ONNX: cut off at byte {at}")
            if kind == 2 and field in INSIDE[message]:
                waiting.append((INSIDE[message][field], at, at + size))
            at += size
    return False


def _number(content: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at ``at``, 7 bits a byte, however many bytes it was given; and where what follows begins."""
    number = shift = 0
    while True:
        if at >= end or shift > 63:
            raise ValueError(f"no ONNX: no number at byte {at}")
        byte = content[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
