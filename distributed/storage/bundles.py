"""Model bundles at a location: `model.bundle` says what is in the files, this says where they lie."""

from __future__ import annotations

from distributed.storage.location import Location, read_bytes, write_bytes
from model.bundle import BUNDLE_FILE, WEIGHTS_FILE, Bundle, hash_description, load_bundle
from model.errors import BundleError


def write_bundle(location: Location, files: dict[str, bytes]) -> None:
    """Writes the files in their order, so that the bundle is visible only when it is complete."""
    for name, data in files.items():
        write_bytes(location.join(name), data)


def read_bundle_id(location: Location) -> str:
    """The id of the bundle at a location; whether the rest of it is there and whole is not looked at.

    Raises:
        InputError: there is none.
    """
    return hash_description(read_bytes(location.join(BUNDLE_FILE)))


def read_bundle(location: Location) -> Bundle:
    """The bundle at a location, in evaluation mode on the CPU.

    Raises:
        BundleError: there is none, or it is incomplete, altered or of another format version.
    """
    if not location.join(BUNDLE_FILE).exists:
        found = f"no {BUNDLE_FILE}" if location.exists else "nothing"
        raise BundleError(f"{location.uri}: expected a model bundle, found {found}")
    if not location.join(WEIGHTS_FILE).exists:
        raise BundleError(f"{location.uri}: expected a complete model bundle, found no {WEIGHTS_FILE}")
    try:
        return load_bundle({name: read_bytes(location.join(name)) for name in (BUNDLE_FILE, WEIGHTS_FILE)})
    except BundleError as error:
        raise BundleError(f"{location.uri}: {error}") from error
