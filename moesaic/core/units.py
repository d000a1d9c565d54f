"""Numbers as people read them."""


def size_of(count: float) -> str:
    """A number of bytes: `980 B`, `48.8 KiB`, `1.25 GiB`."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.3g} {unit}" if size < 1000 and unit != "B" else f"{size:.0f} {unit}"


def count_of(count: int) -> str:
    """A number of things: `980`, `48.8 K`, `103 M`, `6.92 B`."""
    size, unit = float(count), ""
    for unit in ("", " K", " M", " B", " T"):
        if size < 999.5 or unit == " T":
            break
        size /= 1000
    return f"{size:.3g}{unit}" if unit else str(count)
