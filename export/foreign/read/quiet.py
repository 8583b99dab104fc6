"""Keep what libraries log and warn of off the terminal: what matters of it is said in a line of ours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime

LOGGERS = ("onnx_ir", "onnxscript", "onnx", "onnxruntime")
FATAL = 4  # of ONNX Runtime's log


@contextmanager
def quiet() -> Iterator[None]:
    """Silence loggers and warnings of the libraries that read and run graphs."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
