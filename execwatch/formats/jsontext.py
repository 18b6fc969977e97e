"""JSON, of which one text means one value, whoever wrote it."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Dict, List, Tuple

from execwatch.plain import short

#: Digits of the longest number of 64 bits, with its sign. Python 3.9 takes time for more in
#: proportion to their square.
_MAX_DIGITS = 20


def dumps(value: Any) -> bytes:
    """Return JSON on one line, in ASCII, without control characters.

    Raises:
        TypeError, ValueError: Something in it has no JSON.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f").encode("ascii")


def loads(data: bytes) -> Any:
    """Return what the JSON says.

    Raises:
        ValueError: It is no JSON; or it has NaN, Infinity, a number of more than 20 digits (beyond
            a double where it has a fraction), a key twice, or is nested too deeply for Python.
    """
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ValueError(f"expected UTF-8: {exc.reason} at byte {exc.start + 1}") from None
    except json.JSONDecodeError as exc:
        raise ValueError(f"expected JSON: {exc.msg} at character {exc.pos + 1}") from None
    except RecursionError:
        raise ValueError("expected JSON: nested too deeply") from None


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    data = dict(pairs) if pairs else {}  # which Python 3.9 makes much larger from an empty list
    if len(data) < len(pairs):
        twice, _ = (Counter(key for key, _ in pairs) - Counter(data.keys())).popitem()
        raise ValueError(f"expected JSON: the key {short(twice)} stands there twice")
    return data


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"expected JSON: a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("expected JSON: a number too large")
    return number


def _constant(name: str) -> None:
    raise ValueError(f"expected JSON: {name} is no number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
