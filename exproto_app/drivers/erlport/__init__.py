"""What callback modules that `gen-driver` of 0.1 wrote import; `gen-driver --force` writes them anew."""

from __future__ import annotations

import warnings

warnings.warn(
    "exproto_app.drivers.erlport is deprecated: write the callback modules anew with gen-driver --force",
    DeprecationWarning,
    stacklevel=2,
)
