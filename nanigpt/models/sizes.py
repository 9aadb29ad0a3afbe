"""Whether sizes of a module's parts fit together."""


def misfits(expected: dict[str, tuple[int, int]]) -> list[str]:
    """What of `name: (size, expected size)` is not as expected."""
    return [f"{k}={got}, expected {want}" for k, (got, want) in expected.items() if got != want]
