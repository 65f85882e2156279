"""The import of a user's code from bytes whose digest is known, and the parts that its decorators register."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.readers
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from trainlib.errors import UserError
from trainlib.parts import Part, Parts, collecting
from trainlib.runs.own_code.sources import CodeSource, OwnCode

_imported: dict[tuple[tuple[str, str], ...], Parts] = {}  # by digests: a module is not imported twice in a process
_installed: dict[str, _CodeImporter] = {}  # by top-level package


def import_code(code: OwnCode) -> Parts:
    """Import the code and return the parts that it registers. What it prints goes to standard error.

    Raises UserError, with the line of the user's own code, for whatever goes wrong in it.
    """
    key = tuple(sorted(code.digests.items()))
    if key not in _imported:
        registered: list[Part] = []
        for source in code.sources:
            with contextlib.redirect_stdout(sys.stderr), _unchanged_path(source), collecting() as parts:
                _import(source)
            for part in parts:
                twin = next((one for one in registered if (one.kind, one.name) == (part.kind, part.name)), None)
                if twin is not None:
                    raise UserError(f"{part.place}: a {part.kind} {part.name} is at {twin.place}, too: rename one")
                registered.append(part)
        _imported[key] = Parts(tuple(registered), tuple(code.digests))
    return _imported[key]


class _CodeImporter(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads the modules of one piece of code, from its bytes alone: what lies on the disk does not count."""

    def __init__(self, source: CodeSource):
        self.source = source

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module of the package; raise ModuleNotFoundError for one that it has not."""
        inner = fullname.replace(".", "/")
        if _top(fullname) != _top(self.source.name):
            return None
        for name in (f"{inner}/__init__.py", f"{inner}.py"):
            if name in self.source.files:
                return self._spec(fullname, name, is_package=name.endswith("/__init__.py"))
        if any(name.startswith(f"{inner}/") for name in self.source.files):
            return self._spec(fullname, f"{inner}/__init__.py", is_package=True)  # a folder without __init__.py
        raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)

    def _spec(self, fullname: str, name: str, *, is_package: bool) -> importlib.machinery.ModuleSpec:
        file = self.source.root / name
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=str(file), is_package=is_package)
        spec.loader_state = name
        spec.has_location = True
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(str(file.parent))
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Run a module."""
        assert module.__spec__ is not None
        exec(self._code(module.__spec__.loader_state), module.__dict__)

    def _code(self, name: str) -> CodeType:
        return compile(self.source.files.get(name, b""), str(self.source.root / name), "exec", dont_inherit=True)

    def is_package(self, fullname: str) -> bool:
        """Return True for a package."""
        return f"{fullname.replace('.', '/')}.py" not in self.source.files and not self.source.is_file

    def get_source(self, fullname: str) -> str | None:
        """Return the text of a module, for tracebacks."""
        inner, files = self.source.name if self.source.is_file else fullname.replace(".", "/"), self.source.files
        content = files.get(inner) or files.get(f"{inner}.py") or files.get(f"{inner}/__init__.py")
        return None if content is None else importlib.util.decode_source(content)

    def get_resource_reader(self, fullname: str) -> importlib.readers.FileReader:
        """Return what finds the data files beside a module."""
        package = self.source.root / fullname.replace(".", "/") / "__init__.py"
        return importlib.readers.FileReader(importlib.machinery.SourceFileLoader(fullname, str(package)))


def _top(fullname: str) -> str:
    return fullname.partition(".")[0]


def _import(source: CodeSource) -> None:
    try:
        if source.is_file:
            _run_file(source)
        else:
            _import_module(source)
    except SyntaxError as error:
        raise UserError(f"{error.filename} line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise UserError(_message(source, error)) from error


def _run_file(source: CodeSource) -> None:
    """Run a file as a module of a name that no other module has, whatever the file is called: `random.py` is fine."""
    name = f"code:{source.name.removesuffix('.py').replace('.', '_')}"
    importer = _CodeImporter(source)
    spec = importer._spec(name, source.name, is_package=False)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and typing look their module up
    importer.exec_module(module)


def _import_module(source: CodeSource) -> None:
    top = _top(source.name)
    earlier = _installed.get(top)
    if earlier is None and (top in sys.modules or top in sys.stdlib_module_names):
        raise UserError(f"--code {source.name}: Python or this software has a module {top} of its own: rename yours")
    if earlier is None or earlier.source.files != source.files:
        if earlier is not None:
            sys.meta_path.remove(earlier)
            for name in [one for one in sys.modules if _top(one) == top]:
                del sys.modules[name]
        _installed[top] = _CodeImporter(source)
        sys.meta_path.insert(0, _installed[top])
    importlib.import_module(source.name)


@contextlib.contextmanager
def _unchanged_path(source: CodeSource) -> Iterator[None]:
    """Context manager: refuse code that imports what lies beside it and is not copied, or prepares to do so."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
        changed = [entry for entry in sys.path if entry not in path]
    finally:
        sys.path[:] = path
    if changed:
        raise UserError(
            f"{source.place}: it adds {changed[0]} to sys.path, which a copy of it elsewhere does not "
            f"find: {_INTO_PACKAGE}"
        )
    for name in sorted(set(sys.modules) - modules):
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        # torch has modules of no file that call themselves `_ops.py`.
        is_beside = isinstance(file, str) and Path(file).parent == source.root and Path(file).is_file()
        if is_beside and not isinstance(loader, _CodeImporter):
            raise UserError(f"{source.place}: it imports {file}, which lies beside it: {_INTO_PACKAGE}")


_INTO_PACKAGE = (
    "a FILE imports only what is installed. Put it and what it needs into one folder, a package, import from there "
    "with `from . import ...`, and give `--code PACKAGE.MODULE`"
)


def _message(source: CodeSource, error: BaseException) -> str:
    """Return place, kind and text of an error in the user's code, and the way out where it is known."""
    files = {str(source.root / name) for name in source.files}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    place = f"{frames[-1].filename} line {frames[-1].lineno}: " if frames else ""
    if isinstance(error, UserError):
        return str(error) if str(error).startswith(place.rstrip(": ")) else f"{place}{error}"
    text = f"{place}{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        return f"{place}it ends the program (SystemExit), must only define parts when it is imported"
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = _top(error.name)
        if source.is_file and ((source.root / f"{top}.py").exists() or (source.root / top).is_dir()):
            return f"{text}. It lies beside it: {_INTO_PACKAGE}"
        return f"{text}. Install it, or put it into the package that `--code` names"
    if isinstance(error, ImportError) and "relative import" in str(error):
        return f"{text}. {_INTO_PACKAGE[0].upper()}{_INTO_PACKAGE[1:]}"
    return text
