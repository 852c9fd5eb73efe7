"""Makes frameworks work with qrnn from their first import on, in every Python process.

qrnn_startup.pth, which Python runs when it starts, calls install(). That adds a finder to
sys.meta_path and imports nothing: neither qrnn nor torch is loaded before a module in HOOKS is
executed, and where that never happens nothing else does. QRNN_STARTUP=0 switches it off.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # as in typing, which is too slow to import here
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

HOOKS = {
    # module that is imported: (when we act, our module, the function in it to call)
    "allennlp": ("before", "qrnn.allennlp.compat", "mend"),
    "allennlp.commands": ("after", "qrnn.allennlp.compat", "extend"),
    "joeynmt.model": ("after", "qrnn.joeynmt.compat", "extend"),
    "joeynmt.search": ("after", "qrnn.joeynmt.compat", "extend_search"),
    "joeynmt.training": ("after", "qrnn.joeynmt.compat", "extend_training"),
}


def install() -> None:
    """Starts watching for the modules in HOOKS. Doing it twice changes nothing."""
    if os.environ.get("QRNN_STARTUP") != "0" and Finder not in sys.meta_path:
        sys.meta_path.insert(0, Finder)


class Finder:
    """Lets the finders behind it find the modules in HOOKS, and acts when these are executed."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in HOOKS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(cls) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:  # None: a mere folder of that name, not the framework
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """The loader that was found, but for the call before or after the module is executed."""

    def __init__(self, found: Loader) -> None:
        self.found = found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # pickle asks for these before self.found is there
            raise AttributeError(name)
        return getattr(self.found, name)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.found  # no trace of this class remains
        when, ours, function = HOOKS[module.__spec__.name]
        if when == "before":
            _call(ours, function)
        self.found.exec_module(module)
        if when == "after":
            _call(ours, function)


def _call(name: str, function: str) -> None:
    """Calls a function in one of our modules, which is loaded without its package.

    The package qrnn.allennlp imports allennlp, and that is what must not have happened yet.
    """
    from importlib.util import find_spec, module_from_spec, spec_from_file_location

    if name not in sys.modules:
        package, *folders, file = name.split(".")
        found = find_spec(package)
        if found is None or found.origin is None:
            raise ModuleNotFoundError(
                f"{__file__} is left of an installation of {package} that is gone: "
                f"run 'pip uninstall {package}', or set QRNN_STARTUP=0",
                name=package,
            )
        path = os.path.join(os.path.dirname(found.origin), *folders, f"{file}.py")
        spec = spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    getattr(sys.modules[name], function)()
