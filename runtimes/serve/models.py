"""Bundles by the names that clients give for a model."""

from __future__ import annotations

from typing import Any

from edgeglm.runtimes.serve.bundles import Bundles
from edgeglm.runtimes.serve.errors import ApiError


class Models:
    """Tells clients of the bundles that they can ask.

    Args:
        bundles: All that are served.
    """

    def __init__(self, bundles: Bundles) -> None:
        self.bundles = bundles

    def listed(self) -> dict[str, Any]:
        """Return OpenAI's list of them."""
        return {"object": "list", "data": [self.about(name) for name in self.bundles.folders]}

    def about(self, name: str) -> dict[str, Any]:
        """Return OpenAI's object of one.

        Raises:
            ApiError: None has the name.
        """
        if name not in self.bundles.folders:
            raise self._unknown(name)
        bundle = self.bundles.described[name]
        return {
            "id": name,
            "object": "model",
            "created": int(bundle.folder.stat().st_mtime),
            "owned_by": "edgeglm",
            "max_model_len": self.bundles.windows[name],
            "modalities": ["text", "image"][: 1 + bool(bundle.manifest.model.vision)],
        }

    def find(self, asked: str | None) -> str:
        """Return the bundle that a request means: any name will do where there is one alone.

        Raises:
            ApiError: There are several, and none has the name.
        """
        names = [*self.bundles.folders]
        if len(names) == 1:
            return names[0]
        if asked not in names:
            raise self._unknown(asked)
        return asked

    def _unknown(self, name: str | None) -> ApiError:
        known = ", ".join(self.bundles.folders)
        return ApiError(404, f"no model {str(name)[:200]!r}; there is {known}", param="model", code="model_not_found")
