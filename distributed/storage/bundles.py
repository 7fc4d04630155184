"""Model bundles at a location; `model.bundle` knows the contents of their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from distributed.storage.location import Location, read_bytes, write_bytes
from model.description import BUNDLE_FILE, WEIGHTS_FILE, BundleDescription, describe_bundle, hash_description
from model.errors import BundleError

if TYPE_CHECKING:
    from model.bundle import Bundle

Result = TypeVar("Result")


def write_bundle(location: Location, files: dict[str, bytes]) -> None:
    """Writes the files in their order, so that the bundle is visible only when it is complete."""
    for name, data in files.items():
        write_bytes(location.join(name), data)


def read_bundle_id(location: Location) -> str:
    """The id of the bundle at a location; its weights are not looked at.

    Raises:
        InputError: there is none.
    """
    return hash_description(read_bytes(location.join(BUNDLE_FILE)))


def read_description(location: Location) -> BundleDescription:
    """The description of the bundle at a location, whose files are whole; its network is not built.

    Raises:
        BundleError: as `read_bundle`.
    """
    return _read(location, describe_bundle)


def read_bundle(location: Location) -> Bundle:
    """The bundle at a location, in evaluation mode on the CPU.

    Raises:
        BundleError: there is none, or it is incomplete, altered or of another format version.
    """
    from model.bundle import load_bundle  # PyTorch: seconds that who only describes a bundle need not wait

    return _read(location, load_bundle)


def _read(location: Location, parse: Callable[[Mapping[str, bytes]], Result]) -> Result:
    if not location.join(BUNDLE_FILE).exists:
        found = f"no {BUNDLE_FILE}" if location.exists else "nothing"
        raise BundleError(f"{location.uri}: expected a model bundle, found {found}")
    if not location.join(WEIGHTS_FILE).exists:
        raise BundleError(f"{location.uri}: expected a complete model bundle, found no {WEIGHTS_FILE}")
    try:
        return parse({name: read_bytes(location.join(name)) for name in (BUNDLE_FILE, WEIGHTS_FILE)})
    except BundleError as error:
        raise BundleError(f"{location.uri}: {error}") from error
