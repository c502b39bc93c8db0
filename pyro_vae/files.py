"""Files that are whole or not there."""

import json
import math
import os
from pathlib import Path
from typing import Any

__all__ = ["strict_json", "write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also if the machine loses power."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def strict_json(values: Any) -> str:
    """Returns JSON without NaN and infinity, which the standard does not know: null there."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(values), indent=2, allow_nan=False) + "\n"
