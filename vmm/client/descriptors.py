"""Open files in a body: they travel beside the JSON (``SCM_RIGHTS``), never in it. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterator

from vmm.config.model import ConfigModel
from vmm.config.units import Mark
from vmm.config.values import shape_of


def descriptors_of(model: ConfigModel) -> Iterator[int]:
    """Give the descriptors that a body names, in the order in which the server takes them.

    Spec: Cloud Hypervisor API, SCM_RIGHTS: of each network device, of each VFIO device, iommufd.
    """
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        values = value if isinstance(value, tuple) else (value,)
        is_descriptor = Mark.DESCRIPTOR in shape_of(field).marks
        for each in values:
            if is_descriptor and each is not None:
                yield each
            elif isinstance(each, ConfigModel):
                yield from descriptors_of(each)


def without_descriptors(model: ConfigModel) -> dict[str, object]:
    """Give a body's plain data without the numbers, which mean nothing to the server."""
    data = model.to_json()
    _strip(model, data)
    return data


def _strip(model: ConfigModel, data: dict[str, object]) -> None:
    for name, field in type(model).model_fields.items():
        if Mark.DESCRIPTOR in shape_of(field).marks:
            data.pop(name, None)
            continue
        value, shown = getattr(model, name), data.get(name)
        pairs = zip(value, shown, strict=True) if isinstance(shown, list) else [(value, shown)]
        for each, plain in pairs:
            if isinstance(each, ConfigModel) and isinstance(plain, dict):
                _strip(each, plain)
