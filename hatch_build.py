"""Build hook: compile the native library into the wheel, or for `pip install -e` beside its source.

Nothing that goes wrong here stops an installation: without the library MindSpore computes the same, and
`spark13b doctor` says how to build it later. SPARK13B_NATIVE=0 leaves it out.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeLibrary(BuildHookInterface):  # type: ignore[type-arg]
    """Adds src/spark13b/native/libspark13b-*.so to what is installed, where there is a compiler."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it gathers files; `version` is `editable` or `standard`."""
        if os.environ.get("SPARK13B_NATIVE", "") == "0":
            return
        building = self._building()
        editable = version == "editable"
        self._workspace = None if editable else tempfile.TemporaryDirectory(prefix="spark13b-native-")
        folder = building.source_folder() if self._workspace is None else Path(self._workspace.name)
        try:
            library = building.build(folder)
        except building.BuildError as error:
            self.app.display_warning(f"spark13b is installed without its native library: {error}")
            return
        if not editable:
            build_data["force_include"][str(library)] = f"spark13b/native/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the wheel is written."""
        workspace = getattr(self, "_workspace", None)
        if workspace is not None:
            workspace.cleanup()

    def _building(self) -> Any:
        """build.py as a module: the package cannot be imported here, for its dependencies are not installed."""
        path = Path(self.root) / "src" / "spark13b" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("spark13b_native_build", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def _platform() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
