"""The routing profiles of a running engine: read from files, read again when these change, one of them active.

They live beside the front end, which resolves what each request uses when it arrives; a request keeps that to its end,
whatever happens to the profile. A file that is broken while running leaves its profile as it was, and is told of.
Torch-free; `refresh` may run in another thread than the rest.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any

from moesaic.core.errors import ConfigError, RequestError, unknown_name
from moesaic.core.log import get_logger
from moesaic.core.routing import MoeShape, RequestRouting, resolve
from moesaic.core.routing_options import RoutingOptions
from moesaic.core.routing_profile import SUFFIXES, RoutingProfile, make_profile, read_profile

logger = get_logger(__name__)
MOST_PROFILES = 256
REFRESH_SECONDS = 1.0
Stamp = tuple[int, int, int]  # of a file: time of its last change in ns, size, inode


@dataclass(frozen=True)
class Kept:
    """A profile and where it is from.

    Attributes:
        path: its file; None for one that the program gave.
        stamp: of the file as it was last read, or tried to.
        error: why the file, as it is now, is not what is used; "" where it is.
    """

    profile: RoutingProfile
    path: Path | None = None
    stamp: Stamp | None = None
    error: str = ""


class RoutingProfiles:
    """Every profile by its name.

    Args:
        sources: files, and folders of which each *.toml and *.json is one; new ones are found while running.
        active: the one that requests use which name none; by default the one there is, if just one file was given.

    Raises:
        ConfigError: a file cannot be used, two have one name, or `active` is none of them.
    """

    def __init__(self, sources: Sequence[str | os.PathLike[str]] = (), active: str | None = None) -> None:
        self._sources = [Path(source) for source in sources]
        self._shape: MoeShape | None = None
        self._kept: dict[str, Kept] = {}  # replaced whole, never changed: readers need no lock
        self._refused: dict[Path, tuple[Stamp | None, str]] = {}  # new files that could not be used, and why
        self._writing = Lock()
        self._next = monotonic() + REFRESH_SECONDS
        for path in self._files():
            self._keep(_read(path))
        if active is None and len(self._sources) == 1 and self._sources[0].is_file():
            active = next(iter(self._kept))
        self.active: str | None = None
        self.activate(active or None, ConfigError)

    def fit(self, shape: MoeShape | None) -> None:
        """Check every profile against the model, now that it is known. Raises ConfigError."""
        self._shape = shape
        for kept in self._kept.values():
            _check(kept, shape)
        if self.active is not None:
            logger.info("routing profile %r is active", self.active)

    def resolve(self, options: RoutingOptions | None) -> RequestRouting | None:
        """What a request with these options uses, from now to its end. Raises RequestError."""
        profile = self._profile_of(options)
        if profile is None:
            return resolve(options, self._shape)
        rules = profile.rules_for(options.tags if options is not None else [])
        return resolve(options, self._shape, rules, profile.name, profile.version)

    def _profile_of(self, options: RoutingOptions | None) -> RoutingProfile | None:
        named = options.profile if options is not None else None
        name = self.active if named is None else named
        if not name:
            return None
        kept = self._kept.get(name)
        if kept is None:
            raise RequestError(self._unknown(name), "routing.profile")
        return kept.profile

    def _unknown(self, name: str) -> str:
        return f"{unknown_name('routing profile', name, self._kept)}; there is {', '.join(self._kept) or 'none'}"

    # ---------------------------------------------------------------- changes

    def activate(self, name: str | None, error: type[Exception] = RequestError) -> None:
        """Make a profile that of all requests to come that name none; None for no profile. Raises `error` of an
        unknown name."""
        if name is not None and name not in self._kept:
            raise error(self._unknown(name))
        if self._shape is not None and name != self.active:
            logger.info("routing profile %r is active", name) if name else logger.info("no routing profile is active")
        self.active = name

    def add(self, source: str | os.PathLike[str] | Mapping[str, Any]) -> str:
        """Take a file, or what would stand in one, and return the profile's name. One of the same name takes the place
        of what was given so before, or is of the same file. Raises ConfigError."""
        with self._writing:
            kept = Kept(make_profile(source)) if isinstance(source, Mapping) else _read(Path(source))
            _check(kept, self._shape)
            self._keep(kept)
            return kept.profile.name

    @property
    def watched(self) -> bool:
        """Whether there are files to look at again."""
        return bool(self._sources) or any(kept.path for kept in self._kept.values())

    def refresh_if_due(self) -> None:
        """`refresh`, at most once a second."""
        if monotonic() >= self._next:
            self.refresh()

    def refresh(self) -> None:
        """Look at every file again. Raises nothing: what is wrong is logged and listed."""
        with self._writing:
            self._next = monotonic() + REFRESH_SECONDS
            for kept in list(self._kept.values()):
                self._read_again(kept)
            try:
                new = set(self._files()) - {kept.path for kept in self._kept.values()}
            except ConfigError as error:  # the folder is gone: what was in it is told of by itself
                logger.debug("%s", error)
                return
            self._refused = {path: why for path, why in self._refused.items() if path in new}
            for path in sorted(new):
                self._read_new(path)

    def _read_again(self, kept: Kept) -> None:
        path = kept.path
        if path is None or (stamp := _stamp(path)) == kept.stamp:
            return
        name = kept.profile.name
        try:
            if stamp is None:
                raise ConfigError(f"{path} is gone")
            changed = _read(path)
            if changed.profile.name != name:
                raise ConfigError(
                    f"{path} is called {changed.profile.name!r} now; a file keeps its profile's name while running"
                )
            _check(changed, self._shape)
        except ConfigError as error:
            changed = replace(kept, stamp=stamp, error=str(error))
            logger.warning("routing profile %r stays as it was (version %s): %s", name, kept.profile.version, error)
        else:
            logger.info("routing profile %r was read again: version %s", name, changed.profile.version)
        self._kept = self._kept | {name: changed}

    def _read_new(self, path: Path) -> None:
        stamp = _stamp(path)
        if path in self._refused and self._refused[path][0] == stamp:
            return
        try:
            kept = _read(path)
            _check(kept, self._shape)
            self._keep(kept)
            self._refused.pop(path, None)
            logger.info("routing profile %r was found: version %s", kept.profile.name, kept.profile.version)
        except ConfigError as error:
            self._refused[path] = stamp, str(error)
            logger.warning("a routing profile is left out: %s", error)

    def _keep(self, kept: Kept) -> None:
        name = kept.profile.name
        other = self._kept.get(name)
        if other is not None and other.path != kept.path:
            theirs, ours = (str(k.path or "one that the program gave") for k in (other, kept))
            raise ConfigError(f"two routing profiles are called {name!r}: {theirs} and {ours}; rename one")
        if other is None and len(self._kept) >= MOST_PROFILES:
            raise ConfigError(f"there are more than {MOST_PROFILES} routing profiles")
        self._kept = self._kept | {name: kept}

    def _files(self) -> list[Path]:
        """Every file there is, each once, in order. Raises ConfigError of a source that does not exist."""
        files: list[Path] = []
        for source in self._sources:
            if not os.path.isdir(source):
                files.append(source)
                continue
            try:
                files += sorted(p for p in source.iterdir() if p.suffix in SUFFIXES and not p.name.startswith("."))
            except OSError as error:
                raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
        return list(dict.fromkeys(files))

    # ---------------------------------------------------------------- telling

    def listing(self) -> dict[str, Any]:
        """What `GET /v1/moe/routing` says of profiles: `active`, `profiles`, and `refused` files."""
        profiles = [
            kept.profile.plain()
            | {
                "tags": kept.profile.tags,
                "version": kept.profile.version,
                "file": kept.path.name if kept.path else None,
                "error": kept.error or None,
            }
            for kept in self._kept.values()
        ]
        refused = [{"file": path.name, "error": why} for path, (_, why) in self._refused.items()]
        return {"active": self.active, "profiles": profiles, "refused": refused}


def _read(path: Path) -> Kept:
    stamp = _stamp(path)  # first: what is written between the two is read again
    return Kept(read_profile(path), path, stamp)


def _check(kept: Kept, shape: MoeShape | None) -> None:
    try:
        kept.profile.check(shape)
    except ConfigError as error:
        raise ConfigError(f"{kept.path}: {error}" if kept.path else str(error)) from error


def _stamp(path: Path) -> Stamp | None:
    """What changes when a file does; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
