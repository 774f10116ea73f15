"""Waits inside the traced command for torch to be imported and then starts the runtime; without torch it does nothing.

Python imports `sitecustomize` at start-up from the first folder of PYTHONPATH that has one. This one steps aside at
once: the folder leaves `sys.path`, and the `sitecustomize` that would have been found without us takes its place.

It runs in every Python process below the traced command, so it imports nothing that the interpreter has not imported
already (importlib.util alone would cost 20 ms each), and no error of its own ever reaches the user's program.
"""

import os
import sys

TYPE_CHECKING = False  # typing itself would cost several ms
if TYPE_CHECKING:
    from typing import Any

OLDEST_TORCH = (2, 4)
"""First with everything the runtime needs; the launcher names it to the user."""


COMPILE_WORKER = os.path.join("compile_worker", "__main__.py")
"""What torch.compile starts to compile kernels in; such a process imports torch and never trains."""


class TorchWatcher:
    """The first finder on `sys.meta_path`: finds nothing itself, adds one call after torch's own module has run."""

    def __init__(self, folder: str, package: str) -> None:
        self.folder = folder
        self.package = package

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name != "torch":
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec = find(name, path, target)
            if spec is not None:
                self._follow(spec)
                return spec
        leave_mark(self.folder, "torch-missing", sys.executable)
        return None

    def _follow(self, spec: "Any") -> None:
        # An attribute of this one loader object, taken off before use: torch.__loader__ stays what it was.
        try:
            loader = spec.loader
            execute = loader.exec_module

            def exec_module(module: "Any") -> None:
                del loader.exec_module
                execute(module)
                self.start(module)

            loader.exec_module = exec_module
        except AttributeError:
            pass  # A folder that happens to be called torch has no loader to follow.

    def start(self, torch: "Any") -> None:
        """Starts the runtime for a torch whose package has just been executed; errors of ours end here, in a file."""
        try:
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            version = str(torch.__version__)
            leave_mark(self.folder, "torch-" + version, "")
            if release(version) < OLDEST_TORCH:
                leave_mark(self.folder, "torch-too-old", version)
                return
            start_runtime(self.folder, self.package)
        except Exception:
            import traceback

            leave_mark(self.folder, f"problem-{os.getpid()}.txt", traceback.format_exc())


def start_runtime(folder: str, package: str) -> None:
    """Calls `start` of `<package>.runtime.session`, or of the recorder alone, with the launcher's settings."""
    import importlib
    import importlib.util
    import json

    with open(os.path.join(folder, "settings.json"), encoding="utf-8") as file:
        settings = json.load(file)
    if package not in sys.modules:
        # By location, because the folder is not on sys.path.
        place = os.path.join(folder, package)
        spec = importlib.util.spec_from_file_location(
            package, os.path.join(place, "__init__.py"), submodule_search_locations=[place]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[package] = module
        spec.loader.exec_module(module)
    if settings.get("preflight"):
        try:
            layer = importlib.import_module(package + ".preflight.layer").start(settings["preflight"])
        except RuntimeError as error:
            if type(error).__name__ != "Refused":
                raise
            leave_mark(folder, "refused", str(error))
            sys.exit(2)  # on this machine the program would only fail later, for want of a device
        settings["preflight"] = layer.told
    part = "session" if settings.get("traced", True) else "recorder"
    importlib.import_module(f"{package}.runtime.{part}").start(settings)


def release(version: str) -> "tuple[int, int]":
    """(major, minor) of a torch version such as "2.13.0+cpu" or "2.4.0a0"; anything unreadable counts as new."""
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return OLDEST_TORCH


def leave_mark(folder: str, name: str, text: str) -> None:
    """Leaves a file for the launcher to read, unless there already is one; a folder that has gone is no error."""
    try:
        file = os.open(os.path.join(folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError:
        return
    try:
        os.write(file, text.encode("utf-8", "replace"))
    finally:
        os.close(file)


def watch(folder: str, package: str) -> None:
    """Starts waiting for torch in this process, once; the runtime is taken from `package`."""
    # By name: precaudit.run brings the same class under another module name.
    if any(type(finder).__name__ == TorchWatcher.__name__ for finder in sys.meta_path):
        return
    leave_mark(folder, "loaded", sys.executable)
    if any(word.endswith(COMPILE_WORKER) for word in sys.orig_argv[1:3]):
        return
    watcher = TorchWatcher(folder, package)
    if "torch" in sys.modules:
        watcher.start(sys.modules["torch"])
    else:
        sys.meta_path.insert(0, watcher)


def step_aside(folder: str) -> None:
    """Leaves `sys.path` and `sys.modules` as they would be without us, another sitecustomize included."""
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    sys.modules.pop("sitecustomize", None)
    # Where there is none, this ImportError is the very one that site expects of a Python without sitecustomize.
    __import__("sitecustomize")


if __name__ == "sitecustomize":
    _folder = os.path.dirname(__file__)
    if os.environ.get("PRECAUDIT_DISABLE") != "1":
        try:
            watch(_folder, "_precaudit")
        except Exception:
            leave_mark(_folder, f"problem-{os.getpid()}.txt", repr(sys.exc_info()[1]))
    step_aside(_folder)
