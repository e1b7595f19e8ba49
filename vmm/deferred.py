"""Modules whose code runs when something of theirs is used, rather than when they are imported.

Trio and pydantic import what serves features that this program may never use: TLS, names of hosts,
a search for plug-ins. Every start of a VM would pay for it. A module deferred here is found as
ever, but its code runs at the first look at an attribute of it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader
else:
    Loader = object  # importlib.abc imports much of what is to be put off.


class _Deferred(ModuleType):
    """A module whose code has not run. ``__getattr__`` is asked for what it lacks: for all."""

    def __getattr__(self, name: str) -> object:
        spec = self.__spec__
        if spec is None or spec.loader is None or isinstance(spec.loader, _DeferringLoader):
            raise AttributeError(name)  # The import system looks at what it has just made.
        if name == "__path__":
            raise AttributeError(name)  # It asks whether this is a package; those have it already.
        # Its code may import it; from here on it is what it seems.
        object.__setattr__(self, "__class__", ModuleType)
        spec.loader.exec_module(self)
        return getattr(self, name)


class _DeferringLoader(Loader):
    """Makes the module and leaves its code to the first use."""

    def __init__(self, spec: ModuleSpec, names: Collection[str]) -> None:
        self._spec = spec
        self._names = names

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # The import system has named this loader in the module; the real one takes its place.
        module.__spec__ = self._spec
        module.__loader__ = self._spec.loader
        for name in self._names:
            vars(module)[name] = _Forward(module, name)


class _Forward:
    """Stands for a function or class that others import by name and may never call."""

    def __init__(self, module: ModuleType, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> object:
        if vars(self._module).get(self._name) is self:
            del vars(self._module)[self._name]
        return getattr(self._module, self._name)(*args, **kwargs)


class _DeferringFinder:
    def __init__(self, names_of: Mapping[str, Collection[str]]) -> None:
        self._names_of = names_of

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._names_of:
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is None or not isinstance(found.loader, SourceFileLoader):
            return found  # Code in C cannot be put off.
        loader = _DeferringLoader(found, self._names_of[name])
        deferred = ModuleSpec(name, loader, origin=found.origin)
        deferred.submodule_search_locations = found.submodule_search_locations
        return deferred


def defer(*modules: str) -> None:
    """Put modules off. One that has been imported already stays as it is.

    ``module:name,name`` puts off a module although somebody imports these names from it: what they
    get does nothing but call the real ones, so of a class they may only make objects.
    """
    names_of: dict[str, Collection[str]] = {}
    for each in modules:
        module, _, names = each.partition(":")
        names_of[module] = names.split(",") if names else ()
    sys.meta_path.insert(0, _DeferringFinder(names_of))
